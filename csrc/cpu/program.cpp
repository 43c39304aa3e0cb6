#include "program.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>

namespace ssd {
namespace {

thread_local Program* recorded = nullptr;

}  // namespace

Program* Program::recording() { return recorded; }

void Program::begin() {
  if (recorded != nullptr) throw std::runtime_error("this thread records another program already");
  steps_.clear();
  times_.clear();
  size_ = 0;
  open_ = {&steps_};
  recorded = this;
}

void Program::end() {
  open_.clear();
  if (recorded == this) recorded = nullptr;
}

void Program::begin_when(const uint8_t* flags, int64_t count) {
  const auto body = std::make_shared<Steps>();
  add([flags, count, body] {
    if (std::all_of(flags, flags + count, [](uint8_t flag) { return flag == 0; })) return;
    for (const Step& step : *body) step();
  });
  open_.push_back(body.get());
}

void Program::end_when() { open_.pop_back(); }

int64_t Program::mark() {
  const size_t number = times_.size();
  times_.push_back(0.0);
  add([this, number] {
    times_[number] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  });
  return static_cast<int64_t>(number);
}

void Program::run() {
  std::fill(times_.begin(), times_.end(), 0.0);
  for (const Step& step : steps_) step();
}

}  // namespace ssd
