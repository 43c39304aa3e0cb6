# ssd_warnings: link to it and warnings are errors. Headers that are not ours come in as SYSTEM and are not judged.
add_library(ssd_warnings INTERFACE)
target_compile_options(
  ssd_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror>
                         $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Werror;--Werror=all-warnings>)
