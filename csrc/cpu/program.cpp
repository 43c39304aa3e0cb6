#include "program.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace ssd {
namespace {

thread_local Program* recorded = nullptr;

}  // namespace

Program* Program::recording() { return recorded; }

void Program::begin() {
  if (recorded != nullptr) throw std::runtime_error("this thread records another program already");
  steps_.clear();
  bodies_.clear();
  times_.clear();
  open_ = {&steps_};
  recorded = this;
}

void Program::end() {
  open_.clear();
  if (recorded == this) recorded = nullptr;
}

void Program::begin_when(const uint8_t* flags, int64_t count) {
  const std::shared_ptr<Steps> body = bodies_.emplace_back(std::make_shared<Steps>());
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

int64_t Program::size() const {
  size_t count = steps_.size();
  for (const auto& body : bodies_) count += body->size();
  return static_cast<int64_t>(count);
}

}  // namespace ssd
