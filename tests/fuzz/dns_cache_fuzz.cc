// SPDX-License-Identifier: Apache-2.0
// Any sequence of answers, failures, questions, other settings and time passing: the cache gives out what was
// said last, for as long as dns/README.md says and no longer, and asks when it says. Held against a model
// that keeps everything and searches it from end to end.
#include "dns/cache.h"

#include <algorithm>
#include <span>
#include <vector>

#include "base/assert.h"

namespace {

using namespace penstock::dns;
using namespace std::chrono_literals;
using std::chrono::milliseconds;

constexpr size_t kEntriesMax = 3;
const char* const kNames[] = {"a.test", "b.test", "c.test", "d.test"};

struct Said {
  Key key;
  std::vector<penstock::IpAddress> addresses;  // empty: that there is nothing
  Cache::TimePoint obtained, expires, asked;
  std::optional<Cache::TimePoint> failed;
};

struct Model {
  std::vector<Said> all;  // what was stored first comes first
  Options options;

  Said* find(const Key& key, Cache::TimePoint now) {
    const auto gone = [&](const Said& s) {
      return s.key == key && s.expires + (s.addresses.empty() ? 0ms : options.stale) <= now;
    };
    std::erase_if(all, gone);
    const auto at = std::find_if(all.begin(), all.end(), [&](const Said& s) { return s.key == key; });
    return at == all.end() ? nullptr : &*at;
  }
  void put(Said said) {
    std::erase_if(all, [&](const Said& s) { return s.key == said.key; });
    if (all.size() == kEntriesMax) all.erase(all.begin());
    all.push_back(std::move(said));
  }
};

Cache::Step step_for(const Said* said, Cache::TimePoint now) {
  if (said == nullptr) return Cache::Step::ask;
  if (now < said->expires) return Cache::Step::serve;
  if (!said->failed || now - *said->failed >= 5s) return Cache::Step::ask_briefly;
  return now - said->asked >= 1s ? Cache::Step::serve_and_ask : Cache::Step::serve;
}

void check_same(const Answer* answer, const Said* said, Cache::TimePoint now) {
  PENSTOCK_ASSERT((answer == nullptr) == (said == nullptr));
  if (answer == nullptr) return;
  PENSTOCK_ASSERT(answer->addresses == said->addresses && answer->expires == said->expires);
  PENSTOCK_ASSERT(answer->stale == (said->expires <= now));
  PENSTOCK_ASSERT(answer->found() || !answer->stale);
}

// Two bytes an operation: which, and on what.
void run(std::span<const uint8_t> bytes) {
  Model model;
  model.options = {.ttl_min = 1s, .ttl_max = 20s, .stale = 30s};
  Cache cache(kEntriesMax, model.options);
  Cache::TimePoint now{1000s};
  uint32_t said_so_far = 0;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    const uint8_t what = bytes[i], on = bytes[i + 1];
    const Key key{kNames[on & 3], on & 4 ? Family::v4 : Family::any, false};
    const Cache::TimePoint asked = now - milliseconds((on >> 3) * 100);
    switch (what & 7) {
      case 0:
      case 1: {
        Said* said = model.find(key, now);
        const Cache::Found found = cache.find(key, now);
        PENSTOCK_ASSERT(found.step == step_for(said, now));
        check_same(found.answer, said, now);
        break;
      }
      case 2: {
        Said* said = model.find(key, now);
        check_same(cache.asked_lately(key, now), said && now - said->asked < 1s ? said : nullptr, now);
        break;
      }
      case 3:
      case 4: {
        Said said{key, {}, now, now + 1s, asked, std::nullopt};
        Answer answer;
        const std::chrono::seconds ttl(static_cast<int>(what >> 3) - 1);
        if (what & 1) {
          said.addresses = answer.addresses = {penstock::IpAddress::v4(++said_so_far)};
          said.expires = now + std::clamp<milliseconds>(ttl, model.options.ttl_min, model.options.ttl_max);
        } else {
          answer.error = "no such name";
        }
        const Answer told = cache.store(key, std::move(answer), ttl, asked, now);
        model.put(said);
        check_same(&told, &said, now);
        break;
      }
      case 5: {
        const Answer told = cache.store_failure(key, "timeout", asked, now);
        PENSTOCK_ASSERT(told.error == "timeout");
        Said* said = model.find(key, now);
        if (said && !said->addresses.empty()) {
          said->asked = asked;
          said->failed = now;
        } else {
          model.put({key, {}, {}, now + 1s, asked, now});
        }
        break;
      }
      case 6:
        now += milliseconds(on) * (what >> 3);
        break;
      case 7: {
        const Options before = model.options;
        if (what & 8) model.options.servers = {{.address = penstock::IpAddress::v4(on), .port = 53}};
        model.options.ttl_max = std::chrono::seconds(1 + on % 40);
        model.options.stale = milliseconds((what >> 4) * 1000);
        for (Said& s : model.all) {
          if (!s.addresses.empty()) s.expires = std::min(s.expires, s.obtained + model.options.ttl_max);
          if (model.options.servers == before.servers) continue;
          s.expires = std::min(s.expires, now);
          s.failed.reset();
        }
        cache.configure(model.options, now);
        break;
      }
    }
    PENSTOCK_ASSERT(cache.size() == model.all.size() && cache.size() <= kEntriesMax);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  run({data, std::min<size_t>(size, 512)});
  return 0;
}
