// SPDX-License-Identifier: Apache-2.0
// The README's way from a line of ss to the flow in bpftool's dump and back: its own commands, word by word,
// against live flows.
#include <sstream>
#include <vector>

#include "netns/edge.h"

namespace penstock::test {
namespace {

// The commands of the first block of this section, without the comments.
std::vector<std::string> commands_of(const std::string& section) {
  const std::string readme = read_file(PENSTOCK_README);
  const size_t heading = readme.find("\n## " + section + "\n");
  const size_t begin = readme.find("\n```sh\n", heading) + 7, end = readme.find("\n```\n", begin);
  if (heading == readme.npos || end == readme.npos)
    throw std::runtime_error("README.md has no commands of " + section);
  std::istringstream lines(readme.substr(begin, end - begin));
  std::vector<std::string> commands;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && !line.starts_with('#')) commands.push_back(line);
  }
  return commands;
}

std::string run(const std::string& script, std::map<std::string, std::string> environment = {}) {
  ProcessOptions options;
  options.environment = std::move(environment);
  Process process({"bash", "-eo", "pipefail", "-c", script}, options);
  EXPECT_EQ(process.wait_exit(), 0) << script << "\n" << process.output();
  return process.output();
}

// What ss shows behind "sk:" on the only line with these two addresses, in this order.
std::string sk_of(const std::string& listing, const std::string& local, const std::string& peer) {
  std::istringstream lines(listing);
  std::string found;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string before, word;
    while (words >> word && !(before == local && word == peer)) before = word;
    const size_t sk = line.find(" sk:");
    if (!words || sk == line.npos) continue;
    EXPECT_EQ(found, "") << listing;
    found = line.substr(sk + 4, line.find(' ', sk + 4) - sk - 4);
  }
  return found;
}

class Readme : public Edge {};
FOR_BOTH_ENGINES(Readme);

TEST_P(Readme, FromSocketToFlowAndBack) {
  const std::vector<std::string> c = commands_of("From a socket to its flow and back");
  ASSERT_EQ(c.size(), 6u);
  const std::string &flows = c[0], &list = c[1], &to_flow = c[2], &to_client = c[3], &lookup = c[4],
                    &to_upstream = c[5];
  DaemonOptions options;
  options.tables = mail_tables();
  options.pin = "/sys/fs/bpf/penstock";  // the README's, in this test's own bpffs
  start_with(options);
  const TcpListener server(at(kAddress, kServerPort));
  std::vector<Pair> pairs;
  for (int i = 0; i < 3; ++i) {
    TcpStream client = connect();
    pairs.push_back({std::move(client), server.accept()});
    pairs.back().client.send_all(std::string(100 + i, 'x'));
    pairs.back().server.recv_exactly(100 + i);
  }
  const Json all = daemon_->flows();
  ASSERT_EQ(all.size(), 3u);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const std::string client = pairs[i].client.local().text(), edge = pairs[i].client.peer().text();
    const std::string dialled = pairs[i].server.peer().text(), mailbox = pairs[i].server.local().text();
    const std::string listing = run(list);
    const std::string client_sk = sk_of(listing, edge, client),
                      upstream_sk = sk_of(listing, dialled, mailbox);
    ASSERT_TRUE(!client_sk.empty() && !upstream_sk.empty()) << listing;

    Json flow;
    const auto up_bytes = [&] {
      flow = Json::parse(run(flows + "\n" + to_flow, {{"sk", client_sk}}));
      const Json& up = flow.at("value").at("up");
      return up.at("spliced_bytes").get<uint64_t>() + up.at("relayed_bytes").get<uint64_t>();
    };
    EXPECT_TRUE(wait_until([&] { return up_bytes() == 100 + i; }))
        << flow;  // relayed ones show a little later
    EXPECT_EQ(flow, Json::parse(run(flows + "\n" + to_flow, {{"sk", upstream_sk}})));
    EXPECT_EQ(flow.at("value").at("client"), client);
    EXPECT_EQ(flow.at("value").at("server"), mailbox);
    EXPECT_EQ(flow.at("key"), std::stoull(client_sk, nullptr, 16));
    EXPECT_EQ(flow.at("value").at("upstream_cookie"), std::stoull(upstream_sk, nullptr, 16));

    const std::map<std::string, std::string> key{{"key", flow.at("key").dump()}};
    EXPECT_EQ(sk_of(run(to_client, key), edge, client), client_sk);
    EXPECT_EQ(sk_of(run(flows + "\n" + lookup + "\n" + to_upstream, key), dialled, mailbox), upstream_sk);
  }
}

}  // namespace
}  // namespace penstock::test
