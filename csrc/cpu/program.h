// A program: the CPU ops of one of a round's programs, recorded once and run again without Python, torch's dispatcher, the
// checks of shapes, and the allocation of outputs.
//
// While a thread records, its ops check their arguments and allocate their outputs as always, but their work becomes a step of
// the program. A step keeps the tensors that it reads and writes, so that every run uses the same memory. Sizes are checked
// when a program is recorded, values whenever it runs.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace ssd {

class Program {
 public:
  using Step = std::function<void()>;

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Ops that this thread calls between begin() and end() become steps.
  void begin();
  void end();

  // Steps between begin_when() and end_when() run only if one of `count` bytes is not zero at that point.
  void begin_when(const uint8_t* flags, int64_t count);
  void end_when();

  // Adds a step that notes the time, in seconds of std::chrono::steady_clock. Returns its number.
  int64_t mark();

  // Runs all steps, on this thread and its team. Throws what a step throws; the steps after it do not run.
  void run();

  // The times of the last run, by the numbers of the marks; 0 where a mark was not reached.
  const std::vector<double>& times() const { return times_; }

  int64_t size() const { return size_; }  // steps, those of conditions included

  // The program that this thread records, or null.
  static Program* recording();
  void add(Step step) {
    open_.back()->push_back(std::move(step));
    ++size_;
  }

 private:
  using Steps = std::vector<Step>;
  Steps steps_;
  std::vector<Steps*> open_{};  // the innermost list that is being recorded is the last
  int64_t size_ = 0;
  std::vector<double> times_{};
};

// Does the work of an op: now, or as a step of the program that this thread records. The work captures its tensors by value.
template <typename Work>
void run_or_record(Work&& work) {
  if (Program* program = Program::recording()) {
    program->add(std::forward<Work>(work));
  } else {
    work();
  }
}

}  // namespace ssd
