# cuda_ops_check: compiles csrc/cuda_ops.cpp with a CPU torch, for machines that have the CUDA toolkit but no CUDA torch. Its
# object is linked to nothing. Such a torch has every header but the one that its CUDA build generates.
find_package(CUDAToolkit REQUIRED)
set(generated ${CMAKE_CURRENT_BINARY_DIR}/generated)
file(WRITE ${generated}/c10/cuda/impl/cuda_cmake_macros.h "#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")

add_library(cuda_ops_check OBJECT EXCLUDE_FROM_ALL csrc/cuda_ops.cpp)
target_include_directories(cuda_ops_check SYSTEM PRIVATE ${generated})
target_link_libraries(cuda_ops_check PRIVATE ssd_extension CUDA::cudart)
