# SPDX-License-Identifier: Apache-2.0
# Run by CPack between installing and packing: where an rpm has its files elsewhere than a .deb.
if(CPACK_GENERATOR STREQUAL "RPM")
  set(share ${CPACK_TEMPORARY_INSTALL_DIRECTORY}/usr/share)
  file(MAKE_DIRECTORY ${share}/zsh/site-functions ${share}/licenses/penstock)
  file(RENAME ${share}/zsh/vendor-completions/_penstock ${share}/zsh/site-functions/_penstock)
  file(REMOVE_RECURSE ${share}/zsh/vendor-completions)
  file(RENAME ${share}/doc/penstock/copyright ${share}/licenses/penstock/copyright)
  file(REMOVE ${share}/doc/penstock/changelog.gz)
  file(COPY ${CMAKE_CURRENT_LIST_DIR}/../../LICENSE DESTINATION ${share}/licenses/penstock)
endif()
