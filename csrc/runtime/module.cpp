// The extension module: loading it registers torch.ops.ssd (csrc/ops.cpp) and brings the host classes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cpu/simd/kernels.h"
#include "runtime/page_allocator.h"

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
}
