# cuda_ops_check: compiles csrc/cuda_ops, and the CUDA part of csrc/runtime, with a CPU build of torch, for machines that have
# the CUDA toolkit but no CUDA torch. The objects are not linked. A CPU build of torch has all headers but one, which is
# generated here.
find_package(CUDAToolkit REQUIRED)
set(generated ${CMAKE_CURRENT_BINARY_DIR}/generated)
file(WRITE ${generated}/c10/cuda/impl/cuda_cmake_macros.h "#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")

file(GLOB cuda_ops_sources CONFIGURE_DEPENDS csrc/cuda_ops/*.cpp)
file(GLOB runtime_sources CONFIGURE_DEPENDS csrc/runtime/*.cpp)
add_library(cuda_ops_check OBJECT EXCLUDE_FROM_ALL ${cuda_ops_sources} ${runtime_sources})
target_compile_definitions(cuda_ops_check PRIVATE SSD_CUDA)
target_include_directories(cuda_ops_check SYSTEM PRIVATE ${generated})
target_link_libraries(cuda_ops_check PRIVATE ssd_extension CUDA::cudart)
