// colaworld._C: what is no tensor and no fact of the build, as Python objects: the CUDA kernels
// with what a launch of each takes, and what the driver makes of it on the GPU that is here. The
// library is asked (cuda/kernels.h), not linked: any file of it will do. Not here: ops,
// facts of the build (facts.cpp); neither needs this module.

#include <dlfcn.h>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace {

// ColaworldKernel with an owned name, and nothing where the driver was not asked.
struct Kernel {
  std::string name;
  int threads, dynamic_shared;
  std::optional<int> registers, local, static_shared, blocks;
};

struct Found {
  std::vector<Kernel> kernels;
  bool fits = true;  // the struct is the one that this module was compiled with
};

void keep(void* context, const ColaworldKernel* kernel, std::size_t size) {
  Found& found = *static_cast<Found*>(context);
  found.fits = found.fits && size == sizeof(ColaworldKernel);
  if (!found.fits) return;
  const auto told = [](int value) { return value < 0 ? std::nullopt : std::optional<int>(value); };
  found.kernels.push_back({kernel->name, kernel->threads, kernel->dynamic_shared,
                           told(kernel->registers), told(kernel->local),
                           told(kernel->static_shared), told(kernel->blocks)});
}

std::vector<Kernel> cuda_kernels(const std::string& library, bool ask_driver) {
  void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) throw std::invalid_argument("library: " + library + " is not loaded");
  using List = decltype(&colaworld_cuda_kernels);
  const auto list = reinterpret_cast<List>(dlsym(handle, "colaworld_cuda_kernels"));
  Found found;
  // Without the function, the library was built without CUDA.
  const char* error = list == nullptr ? nullptr : list(ask_driver, keep, &found);
  dlclose(handle);  // whoever loaded the library keeps it
  if (error != nullptr) throw std::runtime_error("the CUDA driver: " + std::string(error));
  if (!found.fits) {
    throw std::runtime_error(library + " and colaworld._C are of different versions: rebuild");
  }
  return found.kernels;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The CUDA kernels of colaworld, one by one.";
  py::class_<Kernel>(m, "Kernel", "A CUDA kernel as its op launches it.")
      .def_readonly("name", &Kernel::name)
      .def_readonly("threads", &Kernel::threads, "of a block")
      .def_readonly("dynamic_shared", &Kernel::dynamic_shared, "bytes that the launch asks for")
      .def_readonly("registers", &Kernel::registers, "of a thread; None: the driver was not asked")
      .def_readonly("local", &Kernel::local, "bytes of a thread: stack and spills; or None")
      .def_readonly("static_shared", &Kernel::static_shared, "bytes of a block; or None")
      .def_readonly("blocks", &Kernel::blocks, "resident on a multiprocessor; or None");
  m.def("cuda_kernels", &cuda_kernels, py::arg("library"), py::kw_only(), py::arg("ask_driver"),
        "The kernels of the loaded library at this path; ask_driver: on the current device, which "
        "must be there. RuntimeError with the driver's words where it gives no answer.");
}
