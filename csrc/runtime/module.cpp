// The extension module. Loading it registers torch.ops.ssd (csrc/ops.cpp); it also has the host classes.
#include <c10/util/Exception.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/program.h"
#include "cpu/simd/kernels.h"
#include "runtime/page_allocator.h"
#ifdef SSD_CUDA
#include <string>

#include "cuda/kernels.h"
#include "runtime/conditional.h"
#include "runtime/green_context.h"
#endif

namespace py = pybind11;

#ifdef SSD_SANITIZE
// Mistakes for the sanitizers to find (tests/sanitize).
namespace {

int overrun(int64_t size) {
  std::vector<int> values(static_cast<size_t>(size));
  return values.data()[size];
}

int64_t race(int64_t steps) {
  int64_t count = 0;
  ssd::parallel_for(steps, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++count;
  });
  return count;
}

}  // namespace
#endif

PYBIND11_MODULE(_C, m) {
#ifdef SSD_SANITIZE
  m.def("plant_overrun", overrun);
  m.def("plant_race", race);
#endif
  m.def("cpu_isa", [] { return ssd::kernels().name; });

  using Pages = py::array_t<int32_t, py::array::c_style>;
  py::class_<ssd::PageAllocator>(m, "PageAllocator")
      .def(py::init<int32_t>(), py::arg("num_pages"))
      .def(
          "allocate",
          [](ssd::PageAllocator& self, int32_t count) {
            const auto pages = self.allocate(count);
            return Pages(pages.size(), pages.data());
          },
          py::arg("count"))
      .def(
          "hold",
          [](ssd::PageAllocator& self, const Pages& pages) { self.hold({pages.data(), static_cast<size_t>(pages.size())}); },
          py::arg("pages").noconvert())
      .def(
          "free",
          [](ssd::PageAllocator& self, const Pages& pages) { self.free({pages.data(), static_cast<size_t>(pages.size())}); },
          py::arg("pages").noconvert())
      .def("holders", &ssd::PageAllocator::holders, py::arg("page"))
      .def_property_readonly("available", &ssd::PageAllocator::available)
      .def_property_readonly("capacity", &ssd::PageAllocator::capacity);

  // Flags are a pointer, which is an integer as torch gives it to Python.
  py::class_<ssd::Program>(m, "Program")
      .def(py::init())
      .def("begin", &ssd::Program::begin)
      .def("end", &ssd::Program::end)
      .def(
          "begin_when",
          [](ssd::Program& self, uintptr_t flags, int64_t bytes) {
            self.begin_when(reinterpret_cast<const uint8_t*>(flags), bytes);
          },
          py::arg("flags"), py::arg("bytes"))
      .def("end_when", &ssd::Program::end_when)
      .def("mark", &ssd::Program::mark)
      .def_property_readonly("times", &ssd::Program::times)
      .def(
          "run",
          [](ssd::Program& self) {
            try {
              self.run();
            } catch (const c10::Error& error) {  // as torch shows the errors of its ops
              throw std::runtime_error(error.what_without_backtrace());
            }
          },
          py::call_guard<py::gil_scoped_release>())
      .def("__len__", &ssd::Program::size);

#ifdef SSD_CUDA
  // Streams and pointers are integers, as torch gives them to Python.
  m.def("has_conditional_nodes", &ssd::has_conditional_nodes);
  m.def("launches_overlap", [] {
    bool overlap = false;
    if (const cudaError_t error = ssd::cuda::launches_overlap(overlap); error != cudaSuccess)
      throw std::runtime_error(std::string("launches_overlap: ") + cudaGetErrorString(error));
    return overlap;
  });
  py::class_<ssd::GreenContext>(m, "GreenContext")
      .def(py::init<int32_t, int32_t>(), py::arg("device"), py::arg("multiprocessors"))
      .def(
          "stream",
          [](ssd::GreenContext& self, int32_t priority) { return reinterpret_cast<uintptr_t>(self.stream(priority)); },
          py::arg("priority"))
      .def_property_readonly("multiprocessors", &ssd::GreenContext::multiprocessors);
  py::class_<ssd::Conditional>(m, "Conditional")
      .def(py::init([](uintptr_t stream, uintptr_t flags, int32_t count, uintptr_t body, const ssd::GreenContext* part) {
             return ssd::Conditional(reinterpret_cast<cudaStream_t>(stream), reinterpret_cast<const uint8_t*>(flags), count,
                                     reinterpret_cast<cudaStream_t>(body), part);
           }),
           py::arg("stream"), py::arg("flags"), py::arg("count"), py::arg("body"), py::arg("part") = nullptr)
      .def("end", &ssd::Conditional::end);
#else
  m.def("has_conditional_nodes", [] { return false; });
#endif
}
