# torch::torch: the torch of Python_EXECUTABLE. Torch's own TorchConfig.cmake would also configure every optional dependency.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

if(NOT SSD_TORCH_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parent)"
    OUTPUT_VARIABLE SSD_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()

add_library(torch::torch INTERFACE IMPORTED)
target_include_directories(
  torch::torch SYSTEM INTERFACE ${SSD_TORCH_DIR}/include ${SSD_TORCH_DIR}/include/torch/csrc/api/include)
set(torch_libraries torch torch_cpu c10)
if(SSD_CUDA)
  list(APPEND torch_libraries torch_cuda c10_cuda)
endif()
foreach(library IN LISTS torch_libraries)
  target_link_libraries(torch::torch INTERFACE ${SSD_TORCH_DIR}/lib/lib${library}.so)
endforeach()
