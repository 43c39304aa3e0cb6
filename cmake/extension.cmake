# _C: the schemas (csrc/ops.cpp), the CPU ops (csrc/cpu), the host classes (csrc/runtime) and, with SSD_CUDA, the CUDA ops.
execute_process(
  COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir OUTPUT_VARIABLE pybind11_folder OUTPUT_STRIP_TRAILING_WHITESPACE
                                                                      COMMAND_ERROR_IS_FATAL ANY)
find_package(pybind11 REQUIRED CONFIG PATHS ${pybind11_folder} NO_DEFAULT_PATH)

file(GLOB cpu_sources CONFIGURE_DEPENDS csrc/cpu/*.cpp)
file(GLOB simd_sources CONFIGURE_DEPENDS csrc/cpu/simd/*.cpp)
file(GLOB runtime_sources CONFIGURE_DEPENDS csrc/runtime/*.cpp)
if(NOT SSD_CUDA)
  list(FILTER runtime_sources EXCLUDE REGEX "/(conditional|green_context).cpp$")
endif()

# Options of every object of the extension. OpenMP is used for vectorised loops only; csrc/cpu/parallel.h has the threads.
add_library(ssd_extension INTERFACE)
target_include_directories(ssd_extension INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
target_compile_options(ssd_extension INTERFACE -fopenmp-simd)
target_link_libraries(ssd_extension INTERFACE ssd_warnings pybind11::module torch::torch)

# An extension with sanitizers also has planted mistakes (csrc/runtime/module.cpp), which the sanitizers must find.
if(SSD_SANITIZE)
  set(sanitizers $<IF:$<STREQUAL:${SSD_SANITIZE},address>,address$<COMMA>undefined,${SSD_SANITIZE}>)
  target_compile_options(ssd_extension INTERFACE -fsanitize=${sanitizers} -fno-omit-frame-pointer -g -O1)
  target_compile_definitions(ssd_extension INTERFACE SSD_SANITIZE)
endif()

# Compiles the kernels for one instruction set. csrc/cpu/dispatch.cpp chooses one at run time, so nothing here is -march=native.
function(ssd_simd isa)
  add_library(ssd_cpu_${isa} OBJECT ${simd_sources})
  target_compile_definitions(ssd_cpu_${isa} PRIVATE SSD_ISA=${isa})
  target_compile_options(ssd_cpu_${isa} PRIVATE -ffp-contract=fast -fno-math-errno -fno-trapping-math ${ARGN})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU") # GCC bug 105593: GCC's AVX-512 intrinsics read a variable before it is set
    target_compile_options(ssd_cpu_${isa} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  target_link_libraries(ssd_cpu_${isa} PRIVATE ssd_extension)
endfunction()

set(simd_objects)
if(simd_sources)
  set(avx2 -mavx2 -mfma)
  ssd_simd(portable)
  list(APPEND simd_objects $<TARGET_OBJECTS:ssd_cpu_portable>)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    ssd_simd(avx2 ${avx2})
    ssd_simd(avxvnni ${avx2} -mavxvnni)
    set(avx512vnni ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
    ssd_simd(avx512vnni ${avx512vnni})
    ssd_simd(avx512bf16 ${avx512vnni} -mavx512bf16)
    foreach(isa avx2 avxvnni avx512vnni avx512bf16)
      list(APPEND simd_objects $<TARGET_OBJECTS:ssd_cpu_${isa}>)
    endforeach()
  endif()
endif()

add_library(ssd_host OBJECT csrc/ops.cpp ${cpu_sources} ${runtime_sources})
target_compile_options(ssd_host PRIVATE -ffp-contract=off)
target_link_libraries(ssd_host PRIVATE ssd_extension)
if(SSD_CUDA)
  file(GLOB cuda_ops_sources CONFIGURE_DEPENDS csrc/cuda_ops/*.cpp)
  target_sources(ssd_host PRIVATE ${cuda_ops_sources})
  target_compile_definitions(ssd_host PRIVATE SSD_CUDA)
  target_link_libraries(ssd_host PRIVATE CUDA::cudart)
endif()

# The order matters. If several objects hold the same inline function, the linker keeps the first, which must run on any
# machine. So ssd_host and portable come first.
add_library(_C MODULE $<TARGET_OBJECTS:ssd_host> ${simd_objects})
target_link_libraries(_C PRIVATE $<$<BOOL:${SSD_CUDA}>:ssd_kernels;CUDA::cudart> torch::torch)
if(SSD_SANITIZE)
  target_link_options(_C PRIVATE -fsanitize=${sanitizers} -Wl,-rpath,${SSD_TORCH_DIR}/lib)
endif()

# The module is imported after torch, so torch's libraries are already loaded. It has no run path, and the file can be moved.
set_target_properties(
  _C PROPERTIES PREFIX "" SUFFIX ".${Python_SOABI}.so" LINKER_LANGUAGE CXX BUILD_WITH_INSTALL_RPATH ON)
