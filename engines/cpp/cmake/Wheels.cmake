# Finds OpenVINO, TensorRT-RTX and the CUDA runtime among the Python wheels that R2MRF_PYTHON has. Variables that are already
# set keep their values.
if(NOT R2MRF_PYTHON)
  return()
endif()
execute_process(COMMAND ${R2MRF_PYTHON} -c "import sysconfig; print(sysconfig.get_path('platlib'))"
  OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT OpenVINO_DIR AND EXISTS ${wheels}/openvino/cmake)
  set(OpenVINO_DIR ${wheels}/openvino/cmake)
endif()
if(NOT R2MRF_RUNTIME_PATH)
  file(GLOB R2MRF_RUNTIME_PATH ${wheels}/tensorrt_rtx_libs ${wheels}/tensorrt_libs ${wheels}/nvidia/cu[0-9]*/lib)
endif()
