// SPDX-License-Identifier: Apache-2.0
// sim/life.h: one life: daemon's worth of flow/ in a simulated kernel, from the first connection until
// everything is given back, under the laws of README.md. A broken law ends the process.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "flow/worker.h"
#include "sim/kernel.h"
#include "sim/peer.h"
#include "sim/shape.h"
#include "sockmap/sockmap.h"

namespace penstock::sim {

struct Summary {
  std::map<flow::CloseReason, uint64_t> closed;
  std::map<flow::LaneChange, uint64_t> lane_changes;
  std::map<flow::Phase, uint64_t> adopted;  // by another process, after a death
  uint64_t flows = 0, spliced_bytes = 0, relayed_bytes = 0, deaths = 0;
  void add(const Summary& other);
};

sockmap::Sockmap& the_sockmap();  // of the simulated kernel; opened once

class Life {
 public:
  Life(Kernel& kernel, const Shape& shape);
  ~Life();
  Summary live();

  // ---- for resolver.cc and log.cc ----
  dns::Answer answer(const std::string& name, dns::Family family, bool srv);
  uint64_t answer_delay(const std::string& name);
  void on_line(std::string_view line);
  bool stopped() const { return stopped_; }
  uint32_t process() const { return process_; }  // counts the deaths

 private:
  struct Upstream;
  struct Client {
    const ClientShape* shape = nullptr;
    std::unique_ptr<Peer> peer;
    Socket* ours = nullptr;  // null: refused at the door
    Upstream* server = nullptr;
    std::string reason;  // of the log line
    uint32_t lines = 0;
  };
  struct Upstream {
    std::unique_ptr<Peer> peer;
    Client* client = nullptr;  // once its first bytes, or the record, say whose it is
    std::string header;        // what penstock said itself
  };

  void set_up();
  void share();
  void make_workers();
  void take_over();
  std::shared_ptr<const flow::Plan> make_plan(uint32_t id);
  void open_listener(uint32_t index);
  void add_listener(uint32_t index, bool adopted = false);
  void arrive(const ClientShape& shape);
  Remote remote(const Endpoint& to);
  void begin_server(Socket* socket, const Talk& talk);
  void do_command(const Command& command);
  void each_step();
  void look_at_records();
  bool peers_over() const;
  bool all_over() const;
  void end();

  void on_client_bytes(Client& client, const Extent& e);
  void on_server_bytes(Upstream& server, const Extent& e);
  void on_client_eof(Client& client);
  void on_server_eof(Upstream& server);
  void check_end(const Client& client);
  void check_totals();
  std::string describe() const;
  void may(std::initializer_list<flow::CloseReason> reasons) { may_.insert(reasons); }
  void expect(const Shape& shape);
  void expect_delivery(const Client& c, flow::CloseReason r);
  void check_bytes(const Client& c, std::string_view line);

  Kernel& kernel_;
  const Shape& shape_;
  std::unique_ptr<flow::Names> listener_names_, upstream_names_;
  std::unique_ptr<flow::Clients> clients_limits_;
  std::unique_ptr<flow::FlowTable> table_;
  std::unique_ptr<flow::Flow[]> flows_;
  std::unique_ptr<flow::Shared> shared_;
  std::unique_ptr<dns::Resolver> resolver_;
  std::unique_ptr<penstock_totals> own_totals_;
  std::unique_ptr<penstock_listener[]> own_listeners_;
  std::unique_ptr<penstock_upstream[]> own_upstreams_;
  std::vector<std::shared_ptr<const flow::Plan>> plans_;
  std::vector<int> listeners_;  // descriptors, by listener; -1: gone
  std::deque<Client> clients_;
  std::deque<Upstream> servers_;
  std::map<uint64_t, uint64_t> client_of_;  // by the upstream socket's cookie: the client's
  std::map<std::string, uint32_t> asked_;
  std::set<flow::CloseReason> may_;
  std::set<const Peer*> owed_;  // all that was said, and a FIN
  Summary summary_;
  uint32_t arrived_ = 0, process_ = 0;
  uint64_t lines_ = 0;
  bool accepting_ = true, ending_ = false, stopped_ = false;
};

extern Life* g_life;

}  // namespace penstock::sim
