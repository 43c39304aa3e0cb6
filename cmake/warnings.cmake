# ssd_warnings: the warnings of targets that link to it; with SSD_WERROR they are errors. Headers of other projects are SYSTEM
# and exempt. A user's compiler may have warnings that ours lack, so they do not end a user's build.
add_library(ssd_warnings INTERFACE)
if(SSD_WERROR)
  set(cxx_errors -Werror)
  set(cuda_errors -Xcompiler=-Werror --Werror=all-warnings)
endif()
target_compile_options(
  ssd_warnings INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;${cxx_errors}>"
                         "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra;${cuda_errors}>")
