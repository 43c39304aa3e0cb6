# ssd_kernels: the device code of csrc/cuda, on raw pointers and streams. It needs only CMake, Ninja and nvcc.
#
# SSD_CUDA_ARCHS: sm_80 with its PTX, which the driver compiles for later chips, and sm_90a for Hopper.
set(SSD_CUDA_ARCHS "80;90a-real" CACHE STRING "CUDA architectures, as CMAKE_CUDA_ARCHITECTURES spells them")
set(CMAKE_CUDA_ARCHITECTURES ${SSD_CUDA_ARCHS})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

file(GLOB kernel_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(ssd_kernels STATIC ${kernel_sources})
target_include_directories(ssd_kernels PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
target_compile_options(ssd_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>)
target_link_libraries(ssd_kernels PRIVATE ssd_warnings)
