// SPDX-License-Identifier: Apache-2.0
// dns::Resolver that answers what the life says: at once, as from its cache, or later and on another thread.
#include "dns/resolver.h"

#include "sim/life.h"

namespace penstock::dns {

struct Resolver::Impl {};
Resolver::Resolver(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Resolver::~Resolver() = default;

Result<std::unique_ptr<Resolver>> Resolver::start(const Options&) {
  return std::unique_ptr<Resolver>(new Resolver(nullptr));
}

namespace {

void answer(std::string_view name, Family family, bool srv, bool anew, const Resolver::Done& done) {
  sim::Kernel& k = *sim::g_kernel;
  const std::string text(name);
  const uint64_t delay = sim::g_life->answer_delay(text);
  if (delay == 0 && !anew) return done(sim::g_life->answer(text, family, srv));
  k.after(1000 + delay, [=, asked_by = sim::g_life->process()] {
    if (!sim::g_life->stopped() && sim::g_life->process() == asked_by)
      done(sim::g_life->answer(text, family, srv));
  });
}

}  // namespace

void Resolver::resolve(std::string_view name, Family family, Done done) {
  answer(name, family, false, false, done);
}
void Resolver::resolve_srv(std::string_view name, Done done) {
  answer(name, Family::any, true, false, done);
}
void Resolver::renew(std::string_view name, Family family, Done done) {
  answer(name, family, false, true, done);
}
void Resolver::renew_srv(std::string_view name, Done done) {
  answer(name, Family::any, true, true, done);
}

}  // namespace penstock::dns
