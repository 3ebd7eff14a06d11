// SPDX-License-Identifier: Apache-2.0
// support/netns.h: network namespaces without names. One lives as long as its object (and what runs in it),
// so a killed test leaves nothing behind.
#pragma once
#include <string>
#include <vector>

#include "base/fd.h"

namespace penstock::test {

class Netns {
 public:
  Netns();  // new, `lo` up. Throws std::system_error without CAP_SYS_ADMIN.

  // The calling thread is in the namespace while this lives; threads and processes it starts stay there.
  class Inside {
   public:
    explicit Inside(const Netns& ns);
    ~Inside();
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    Fd home_;
  };

  // Runs `ip ARGUMENTS` inside; throws with its output when it fails.
  void ip(const std::string& arguments) const;
  // Joins two namespaces: an end of one veth pair in each, both up, with these addresses ("10.1.0.1/24",
  // "fd01::1/64").
  static void join(const Netns& a, const std::string& a_device,
                   const std::vector<std::string>& a_addresses,  //
                   const Netns& b, const std::string& b_device, const std::vector<std::string>& b_addresses);

  int fd() const { return fd_.get(); }
  std::string path() const;  // /proc/PID/fd/N, for `nsenter --net=`

 private:
  Fd fd_;
};

}  // namespace penstock::test
