# ssd_emulator: csrc/cuda, compiled as C++ for the emulator (tests/emulator), and csrc/cuda_ops, in one library that torch
# loads. It needs CUDA's headers, but neither nvcc nor a GPU.
find_path(SSD_CUDA_INCLUDE cuda_runtime.h HINTS $ENV{CUDA_HOME} /usr/local/cuda PATH_SUFFIXES include REQUIRED)

file(GLOB kernel_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
list(FILTER kernel_sources EXCLUDE REGEX "/(condition|overlap).cu$") # for graphs and launches, which the emulator does not have
file(GLOB cuda_ops_sources CONFIGURE_DEPENDS csrc/cuda_ops/*.cpp)

# The kernels, compiled for the emulator. A variable that nobody has set holds nonsense, so that it is never right by chance.
add_library(ssd_emulated_kernels OBJECT ${kernel_sources} tests/emulator/emulator.cpp)
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX)
target_compile_options(ssd_emulated_kernels PRIVATE -O1 -Wno-unknown-pragmas -ftrivial-auto-var-init=pattern)
target_include_directories(ssd_emulated_kernels PRIVATE csrc csrc/cuda tests/emulator)
target_include_directories(ssd_emulated_kernels SYSTEM PRIVATE ${SSD_CUDA_INCLUDE})
target_link_libraries(ssd_emulated_kernels PRIVATE ssd_warnings)

add_library(ssd_emulator MODULE ${cuda_ops_sources} tests/emulator/torch_side.cpp $<TARGET_OBJECTS:ssd_emulated_kernels>)
target_include_directories(ssd_emulator BEFORE PRIVATE tests/emulator/stand_in tests/emulator)
target_include_directories(ssd_emulator SYSTEM PRIVATE ${SSD_CUDA_INCLUDE})
target_link_libraries(ssd_emulator PRIVATE ssd_extension torch::torch)
set_target_properties(ssd_emulator PROPERTIES PREFIX "" BUILD_WITH_INSTALL_RPATH ON)

add_executable(ssd_emulator_mistakes tests/emulator/mistakes.cpp $<TARGET_OBJECTS:ssd_emulated_kernels>)
target_compile_options(ssd_emulator_mistakes PRIVATE -O1 -Wno-unknown-pragmas -ftrivial-auto-var-init=pattern)
target_include_directories(ssd_emulator_mistakes PRIVATE csrc csrc/cuda tests/emulator)
target_include_directories(ssd_emulator_mistakes SYSTEM PRIVATE ${SSD_CUDA_INCLUDE})
target_link_libraries(ssd_emulator_mistakes PRIVATE ssd_warnings)
