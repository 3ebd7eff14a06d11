// SPDX-License-Identifier: Apache-2.0
// fmt's own code, compiled here once: its shared library has another soname in every distribution, Debian has
// no static one, and FMT_HEADER_ONLY would compile it anew in every file that logs.
#include <fmt/format-inl.h>

#include <locale>

FMT_BEGIN_NAMESPACE
namespace detail {
// What the headers declare and leave to the library (fmt 9).
template locale_ref::locale_ref(const std::locale&);
template std::locale locale_ref::get<std::locale>() const;
template thousands_sep_result<char> thousands_sep_impl(locale_ref);
template char decimal_point_impl(locale_ref);
template dragonbox::decimal_fp<float> dragonbox::to_decimal(float) noexcept;
template dragonbox::decimal_fp<double> dragonbox::to_decimal(double) noexcept;
}  // namespace detail
FMT_END_NAMESPACE
