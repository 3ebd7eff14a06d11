# SPDX-License-Identifier: Apache-2.0
# kernel_test(NAME LABEL FILE...): a gtest program that needs root and a kernel. Each case is a ctest test of its own;
# exit 77 is a skip.
include(GoogleTest)
function(kernel_test name label)
  math(EXPR timeout_s "180 * ${PENSTOCK_SLOWNESS}")
  add_executable(${name} ${ARGN} ${CMAKE_SOURCE_DIR}/tests/support/kernel_test_main.cc)
  target_link_libraries(${name} PRIVATE penstock_test_support)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 NO_PRETTY_VALUES
    PROPERTIES LABELS ${label} SKIP_RETURN_CODE 77 TIMEOUT ${timeout_s})
endfunction()
