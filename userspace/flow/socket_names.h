// SPDX-License-Identifier: Apache-2.0
// flow/socket_names.h: which socket a descriptor is, who is at its ends. Nothing is known of what is no
// socket: an empty endpoint, cookie 0.
#pragma once
#include <sys/socket.h>

#include <cstdint>

#include "base/endpoint.h"

namespace penstock::flow {

Endpoint local_of(int fd);
Endpoint remote_of(int fd);  // empty when it has gone again
// Who connected, also when it has gone again.
Endpoint peer_of(int fd);
uint64_t cookie_of(int fd);  // SO_COOKIE: no other socket of this host has it, or will

}  // namespace penstock::flow
