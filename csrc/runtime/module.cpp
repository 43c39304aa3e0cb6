// The extension module: loading it registers torch.ops.ssd (csrc/ops.cpp) and brings the host classes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cpu/simd/kernels.h"
#include "runtime/page_allocator.h"
#ifdef SSD_CUDA
#include "runtime/conditional.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
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
          "free",
          [](ssd::PageAllocator& self, const Pages& pages) { self.free({pages.data(), static_cast<size_t>(pages.size())}); },
          py::arg("pages").noconvert())
      .def_property_readonly("available", &ssd::PageAllocator::available)
      .def_property_readonly("capacity", &ssd::PageAllocator::capacity);

#ifdef SSD_CUDA
  // Streams and pointers as torch gives them to Python: whole numbers.
  m.def("has_conditional_nodes", &ssd::has_conditional_nodes);
  py::class_<ssd::Conditional>(m, "Conditional")
      .def(py::init([](uintptr_t stream, uintptr_t flags, int32_t count, uintptr_t body) {
             return ssd::Conditional(reinterpret_cast<cudaStream_t>(stream), reinterpret_cast<const uint8_t*>(flags), count,
                                     reinterpret_cast<cudaStream_t>(body));
           }),
           py::arg("stream"), py::arg("flags"), py::arg("count"), py::arg("body"))
      .def("end", &ssd::Conditional::end);
#else
  m.def("has_conditional_nodes", [] { return false; });
#endif
}
