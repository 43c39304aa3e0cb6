# ssd_warnings: turns warnings into errors for targets that link to it. Headers of other projects are SYSTEM and exempt.
add_library(ssd_warnings INTERFACE)
target_compile_options(
  ssd_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror>
                         $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror;--Werror=all-warnings>)
