# Each test program and how many checks must pass in it.
clattn_add_check(test_parity 1518)
clattn_add_check(test_numerics 325)
clattn_add_check(test_threads 15)

# ---- the interface, the decisions, OpenCL's own objects, the program, the headers, the package
clattn_add_check(test_api 360)
if(TARGET clattn_static)
  # The library's own functions: hidden in the shared library, there in the static one.
  add_executable(test_plan test_plan.c harness.c main.c)
  target_link_libraries(test_plan PRIVATE clattn_flags clattn_static PkgConfig::CHECK m)
  target_include_directories(test_plan PRIVATE ${PROJECT_SOURCE_DIR}/host)
  target_compile_definitions(test_plan PRIVATE CLATTN_HAVE_OPENCL=$<BOOL:${CLATTN_OPENCL}>)
  add_test(NAME test_plan COMMAND test_plan)
  set_tests_properties(test_plan PROPERTIES TIMEOUT 1200
    PASS_REGULAR_EXPRESSION "100%: Checks: 272, Failures: 0, Errors: 0")

  # bf16 products over emulated instructions, in the place of what the library would choose.
  add_executable(test_amx test_amx.c problem_numbers.c gradients.c harness.c main.c)
  foreach(text tile_amx tile_bf16 backward_bf16)
    string(REGEX REPLACE ".*_bf16" avx512 products ${text})
    string(REPLACE tile_ "" products ${products})
    add_library(emulated_${text} OBJECT ${PROJECT_SOURCE_DIR}/host/cpu/${text}.c)
    target_link_libraries(emulated_${text} PRIVATE clattn_flags)
    target_include_directories(emulated_${text} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    target_compile_definitions(emulated_${text} PRIVATE EMULATED INSTRUCTIONS=${products}_emulated)
    target_compile_options(emulated_${text} PRIVATE -O2 -ffp-contract=off -Wno-psabi)
    target_link_libraries(test_amx PRIVATE emulated_${text})
  endforeach()
  target_link_libraries(test_amx PRIVATE clattn_flags clattn_static PkgConfig::CHECK Threads::Threads m)
  target_include_directories(test_amx PRIVATE ${PROJECT_SOURCE_DIR}/host)
  target_link_options(test_amx PRIVATE -Wl,--wrap=clattn__host_ops -Wl,--wrap=clattn__backward_ops)
  add_test(NAME test_amx COMMAND test_amx)
  set_tests_properties(test_amx PROPERTIES TIMEOUT 4800
    PASS_REGULAR_EXPRESSION "100%: Checks: 773, Failures: 0, Errors: 0")
endif()
if(CLATTN_OPENCL)
  clattn_add_check(test_opencl 159)
  clattn_add_check(test_decode 262)
  clattn_add_check(test_mma 233)
  clattn_add_check(test_pairs 172)
  clattn_add_check(test_backward_cl 31)
  clattn_add_check(test_cache 40)
  clattn_add_check(test_shares 78)
  clattn_add_check(test_devices 39)
endif()
if(TARGET clattn_program)
  clattn_add_check(test_cli 226)
  add_dependencies(test_cli clattn_program)
  if(TARGET fault_layer)
    target_compile_definitions(test_cli PRIVATE CLATTN_TEST_LAYER="$<TARGET_FILE:fault_layer>")
    add_dependencies(test_cli fault_layer)
  endif()
  target_compile_definitions(test_cli PRIVATE CLATTN_TEST_PROGRAM="$<TARGET_FILE:clattn_program>"
                             CLATTN_TEST_DATA="${CMAKE_CURRENT_SOURCE_DIR}/data" CLATTN_TEST_PNG=$<BOOL:${PNG_FOUND}>)
  if(PNG_FOUND)
    target_link_libraries(test_cli PRIVATE PNG::PNG) # reads what `forward --map` writes
  endif()
endif()
add_test(NAME headers COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/test_headers/run.sh ${PROJECT_SOURCE_DIR}
                              $<BOOL:${CLATTN_OPENCL}> ${CMAKE_C_COMPILER})
if(TARGET clattn) # find_package's clattn::clattn is the shared library, where there is one
  add_test(NAME package COMMAND sh ${CMAKE_CURRENT_SOURCE_DIR}/package/run.sh ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR}
                                ${CMAKE_COMMAND} ${CMAKE_C_COMPILER} $<BOOL:${CLATTN_OPENCL}>)
  set_tests_properties(package PROPERTIES ENVIRONMENT "CLATTN_CACHE=0;CLATTN_TUNING=0")
endif()
clattn_add_check(test_features 1720)

# The C in the README is the examples'.
add_test(NAME readme COMMAND ${CMAKE_COMMAND} -DROOT=${PROJECT_SOURCE_DIR} -P ${CMAKE_CURRENT_SOURCE_DIR}/readme.cmake)

# Gradients, case by case: they run side by side, the longest first.
add_executable(test_backward test_backward.c)
target_link_libraries(test_backward PRIVATE clattn_harness)
foreach(case_checks pairs=636 types=135 ways=134 reference=52 nan=30 bits=6 refusals=49)
  string(REGEX MATCH "^([a-z]+)=([0-9]+)$" matched ${case_checks})
  add_test(NAME test_backward_${CMAKE_MATCH_1} COMMAND test_backward)
  set_tests_properties(test_backward_${CMAKE_MATCH_1} PROPERTIES TIMEOUT 4800 COST ${CMAKE_MATCH_2}
    ENVIRONMENT "CK_FORK=no;CK_RUN_CASE=${CMAKE_MATCH_1}"
    PASS_REGULAR_EXPRESSION "100%: Checks: ${CMAKE_MATCH_2}, Failures: 0, Errors: 0")
endforeach()

# Failures of every call, and buffers that end at a page that nobody may touch.
if(TARGET test_faults)
  set(layer "CK_FORK=no;OPENCL_LAYERS=$<TARGET_FILE:fault_layer>")
  add_test(NAME test_faults COMMAND test_faults)
  set_tests_properties(test_faults PROPERTIES TIMEOUT 4800 COST 200 ENVIRONMENT "${layer}"
    PASS_REGULAR_EXPRESSION "100%: Checks: 141, Failures: 0, Errors: 0")
  add_test(NAME test_faults_devices COMMAND test_faults)
  set_tests_properties(test_faults_devices PROPERTIES TIMEOUT 4800 ENVIRONMENT "${layer};CLATTN_TEST_TWO_DEVICES=1"
    PASS_REGULAR_EXPRESSION "100%: Checks: 9, Failures: 0, Errors: 0")
  add_test(NAME test_kernels COMMAND test_kernels)
  set_tests_properties(test_kernels PROPERTIES TIMEOUT 4800 COST 200 ENVIRONMENT "${layer};CLATTN_FAULT_GUARD=1"
    PASS_REGULAR_EXPRESSION "100%: Checks: 198, Failures: 0, Errors: 0")
endif()
if(TARGET training)
  add_test(NAME training COMMAND training)
  set_tests_properties(training PROPERTIES ENVIRONMENT "CLATTN_CACHE=0;CLATTN_TUNING=0")
endif()
