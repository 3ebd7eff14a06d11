// SPDX-License-Identifier: Apache-2.0
// proxy_differential [--headers N] [--seed N]: our PROXY protocol held against HAProxy's, both ways, in a
// network namespace of its own. What HAProxy says of its clients in each of its ways is read by us; what we
// say, whole and damaged, is read by HAProxy, which tells what it understood. README.md explains each line.
// Exit 1: a line that is not explained there; 77: this machine lacks what it needs.
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>

#include "proxy_protocol/proxy_protocol.h"
#include "support/daemon.h"
#include "support/netns.h"
#include "support/process.h"
#include "support/tcp.h"

namespace {

using namespace penstock;
using namespace penstock::test;
namespace pp = penstock::proxy_protocol;
using Bytes = std::vector<uint8_t>;

constexpr uint16_t kReads = 7000, kServer = 7500, kSays = 7100;
constexpr int kSkipped = 77;

// A listener of HAProxy, and what it is told to say.
struct Way {
  const char* name;
  const char* bind;     // added to its bind
  const char* options;  // of its server
};
constexpr Way kWays[] = {
    {"v1", "", "send-proxy"},
    {"v2", "", "send-proxy-v2"},
    {"v2 crc32c", "", "send-proxy-v2 proxy-v2-options crc32c"},
    {"v2 unique-id", "", "send-proxy-v2 proxy-v2-options unique-id"},
    {"v2 crc32c unique-id", "", "send-proxy-v2 proxy-v2-options crc32c,unique-id"},
    {"v2 ssl", " ssl crt DIR/both.pem alpn h2,imap", "send-proxy-v2-ssl"},
    {"v2 ssl, all of it", " ssl crt DIR/both.pem alpn h2,imap",
     "send-proxy-v2-ssl-cn proxy-v2-options "
     "ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"},
};
constexpr size_t kWayCount = std::size(kWays);

std::string configuration(const std::string& directory) {
  std::string out =
      "defaults\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n"
      "  unique-id-format of-%ci-%cp\n"
      "frontend reads\n  mode http\n  bind 127.0.0.1:7000 accept-proxy\n  bind ::1:7000 accept-proxy\n"
      "  http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] "
      "%[dst_port] "
      "%[fc_pp_authority,hex]. %[fc_pp_unique_id,hex].\"\n";
  for (size_t i = 0; i < kWayCount; ++i) {
    const std::string port = std::to_string(kSays + i);
    std::string bind = kWays[i].bind;
    if (const size_t at = bind.find("DIR"); at != bind.npos) bind.replace(at, 3, directory);
    out += "listen says" + port + "\n  mode tcp\n";
    for (const std::string& where :
         {"127.0.0.1:" + port, "::1:" + port, "unix@" + directory + "/" + port + ".sock"})
      out += "  bind " + where + bind + "\n";
    out += "  server s 127.0.0.1:7500 " + std::string(kWays[i].options) + "\n";
  }
  return out;
}

struct Tally {
  std::map<std::string, uint64_t> lines;
  bool explained = true;
  void count(const std::string& line, std::span<const uint8_t> header = {}) {
    if (lines[line]++ > 0 || line[0] != '!') return;
    explained = false;
    printf("%s\n  ", line.c_str());
    for (const uint8_t byte : header) printf("%02x", byte);
    printf("\n");
  }
};

// ---- HAProxy says, we read

struct Free {
  void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
  void operator()(SSL* p) const { SSL_free(p); }
};

Bytes read_header(const TcpStream& from, pp::Incoming* incoming) {
  Bytes bytes;
  pp::parse(bytes, incoming);
  while (incoming->verdict == pp::Verdict::need_more) {
    const std::string more = from.recv_exactly(incoming->need_bytes - bytes.size());
    bytes.insert(bytes.end(), more.begin(), more.end());
    pp::parse(bytes, incoming);
  }
  return bytes;
}

std::map<int, std::string> tlvs_of(const pp::Incoming& incoming) {
  std::map<int, std::string> out;
  for (auto rest = incoming.tlvs; auto tlv = pp::next_tlv(&rest);)
    out[tlv->type] = std::string(tlv->value.begin(), tlv->value.end());
  return out;
}

std::string check_ssl(const std::string& tlv, SSL* ssl) {  // 2.2.6
  const std::string version = SSL_get_version(ssl), cipher = SSL_get_cipher_name(ssl);
  if (tlv.size() < 5 || (tlv[0] & 1) == 0) return "!the ssl TLV does not say that there was TLS";
  if (tlv.find("\x21" + std::string(1, '\0') + static_cast<char>(version.size()) + version) == tlv.npos)
    return "!the ssl TLV has another version";
  const bool has_cipher = tlv.find(cipher) != tlv.npos;
  return has_cipher ? "the cipher, too" : "";
}

std::string compare_said(const Way& way, const pp::Incoming& incoming, const std::optional<Endpoint>& client,
                         const std::optional<Endpoint>& destination, SSL* ssl, const std::string& sni) {
  if (incoming.verdict != pp::Verdict::header) return "!we refuse what it says";
  if (!client) return incoming.local ? "a Unix client: local" : "!a Unix client with addresses";
  if (incoming.local || incoming.client != *client || incoming.destination != *destination)
    return "!other addresses";
  const std::string options = way.options;
  const auto tlvs = tlvs_of(incoming);
  const auto wants = [&](const char* word) { return options.find(word) != options.npos; };
  if (wants("crc32c") != tlvs.contains(3)) return "!CRC32C";
  std::string host = client->address.text();
  if (wants("unique-id") && tlvs.at(5) != "of-" + host + "-" + std::to_string(client->port))
    return "!another unique id";
  if (ssl == nullptr) return "agree";
  if (!tlvs.contains(0x20)) return "!no ssl TLV";
  if (wants("authority") && (tlvs.contains(2) ? tlvs.at(2) : "") != sni) return "!another authority";
  if (const std::string said = check_ssl(tlvs.at(0x20), ssl); said[0] == '!') return said;
  return "agree";
}

void hear(size_t index, const TcpListener& server, int family, std::mt19937_64* random, Tally* tally,
          const std::string& directory) {
  const Way& way = kWays[index];
  const uint16_t port = static_cast<uint16_t>(kSays + index);
  std::optional<TcpStream> client;
  Fd unix_client;
  std::optional<Endpoint> from, to;
  if (family == AF_UNIX) {
    unix_client.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/%u.sock", directory.c_str(), port);
    if (::connect(unix_client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
      throw std::runtime_error("connect");
  } else {
    to = at(family == AF_INET ? "127.0.0.1" : "::1", port);
    const std::string mine = family == AF_INET ? "127." + std::to_string((*random)() % 250) + ".3.4" : "::1";
    client.emplace(TcpStream::connect(*to, at(mine, 0)));
    from = client->local();
  }
  const bool tls = *way.bind != 0;
  const std::string sni = (*random)() % 3 ? "name" + std::to_string((*random)() % 100) + ".example.net" : "";
  const std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_client_method()));
  if ((*random)() % 2) SSL_CTX_set_max_proto_version(context.get(), TLS1_2_VERSION);
  const std::unique_ptr<SSL, Free> ssl(tls ? SSL_new(context.get()) : nullptr);
  if (tls) {
    SSL_set_fd(ssl.get(), client ? client->fd() : unix_client.get());
    if (!sni.empty()) SSL_set_tlsext_host_name(ssl.get(), sni.c_str());
    if (SSL_connect(ssl.get()) != 1) throw std::runtime_error("TLS handshake with HAProxy failed");
  }
  const TcpStream accepted = server.accept();
  pp::Incoming incoming;
  const Bytes header = read_header(accepted, &incoming);
  const char* text = family == AF_INET ? "IPv4" : family == AF_INET6 ? "IPv6" : "Unix";
  const std::string said = compare_said(way, incoming, from, to, ssl.get(), sni);
  tally->count((said[0] == '!' ? "!HAProxy " : "HAProxy ") + std::string(way.name) + ", " + text + ": " +
                   (said[0] == '!' ? said.substr(1) : said),
               header);
}

// ---- we say, HAProxy reads

Endpoint some_endpoint(bool v4, std::mt19937_64* random) {
  Endpoint out;
  if (v4) {
    out.address = IpAddress::v4(static_cast<uint32_t>((*random)()) | 1u << 24);
  } else {
    for (uint8_t& byte : out.address.bytes) byte = static_cast<uint8_t>((*random)());
  }
  out.port = static_cast<uint16_t>((*random)());
  return out;
}

struct Said {
  Bytes header;
  std::string authority, unique_id;
};

Said say(std::mt19937_64* random) {
  const auto one_in = [&](size_t n) { return (*random)() % n == 0; };
  Said said;
  pp::Outgoing what;
  what.version = one_in(6) ? pp::Version::v1 : pp::Version::v2;
  const bool v4 = one_in(2);
  what.client = some_endpoint(v4, random);
  what.destination = some_endpoint(one_in(20) ? !v4 : v4, random);
  what.local = one_in(15);
  what.crc32c = one_in(3);
  if (one_in(2)) said.authority = "www" + std::string((*random)() % 200, 'a') + ".example.net";
  if (one_in(3)) said.unique_id = std::string(1 + (*random)() % pp::kUniqueIdBytesMax, 'u');
  Bytes passed_on;
  if (one_in(4)) passed_on = {0xe0, 0, 3, 'x', 'y', 'z'};
  what.authority = said.authority;
  if (one_in(3)) what.alpn = "h2";
  what.unique_id = {reinterpret_cast<const uint8_t*>(said.unique_id.data()), said.unique_id.size()};
  what.passed_on = passed_on;
  said.header.resize(pp::kHeaderBytesMax);
  said.header.resize(pp::encode(what, said.header));
  return said;
}

void damage(Bytes* header, std::mt19937_64* random) {
  const auto below = [&](size_t n) { return static_cast<size_t>((*random)() % n); };
  const size_t at = below(2) ? below(header->size()) : below(std::min<size_t>(header->size(), 60));
  switch (below(6)) {
    case 0:
      (*header)[at] = static_cast<uint8_t>((*random)());
      break;
    case 1:
      (*header)[at] ^= static_cast<uint8_t>(1u << below(8));
      break;
    case 2:
      header->insert(header->begin() + static_cast<ptrdiff_t>(at), static_cast<uint8_t>(below(4)));
      break;
    case 3:
      header->erase(header->begin() + static_cast<ptrdiff_t>(at));
      break;
    case 4:
      if (header->size() > 16) (*header)[15] = static_cast<uint8_t>((*header)[15] + below(9) - 4);
      break;
    case 5:
      if (header->size() > 16)
        (*header)[below(2) ? 12 : 13] =
            static_cast<uint8_t>(below(2) ? 0x20 + below(3) : below(4) << 4 | below(3));
      break;
  }
}

std::string hex(std::string_view text) {
  std::string out;
  char two[3];
  for (const char c : text) {
    snprintf(two, sizeof two, "%02X", static_cast<unsigned char>(c));
    out += two;
  }
  return out;
}

constexpr std::string_view kRequest = "GET / HTTP/1.0\r\n\r\n";

// Of HAProxy's answer: "SRC SPORT DST DPORT AUTHORITY. ID.", or "400" where the request was not the whole
// one, or nothing.
std::string tell(const Bytes& header, bool v6) {
  TcpStream stream = TcpStream::connect(at(v6 ? "::1" : "127.0.0.1", kReads));
  stream.send_all(std::string(header.begin(), header.end()) + std::string(kRequest));
  stream.half_close();
  std::string answer;
  stream.recv_to_end(&answer);
  const size_t body = answer.find("\r\n\r\n");
  return body == answer.npos ? "" : answer.starts_with("HTTP/1.1 200") ? answer.substr(body + 4) : "400";
}

// We take a v4-mapped address for what it maps.
std::string without_mapping(std::string text) {
  for (size_t at; (at = text.find("::ffff:")) != text.npos && text.find('.', at) < text.find(' ', at);)
    text.erase(at, 7);
  return text;
}

std::string tlv(const pp::Incoming& incoming, int type) {
  const auto all = tlvs_of(incoming);
  return all.contains(type) ? hex(all.at(type)) : "";
}

std::string compare_heard(const Bytes& header, const std::string& heard) {
  Bytes stream = header;
  stream.insert(stream.end(), kRequest.begin(), kRequest.end());
  pp::Incoming ours;
  pp::parse(stream, &ours);
  const bool v2 = stream[0] == 0x0d;
  const bool taken = ours.verdict == pp::Verdict::header;
  if (!taken && heard.empty()) return "agree: refused";
  if (!taken) {
    if (!v2) return "stricter: v1 that is not its grammar";
    if ((stream[13] & 0xf) != 1) return "stricter: no stream";
    if (stream[13] >> 4 > 2) return "stricter: another family";
    return "!we refuse v2, HAProxy: " + heard;
  }
  const bool whole_request =
      std::string_view(reinterpret_cast<const char*>(stream.data()) + ours.header_bytes,
                       stream.size() - ours.header_bytes) == kRequest;
  if (heard.empty() && v2 && stream[12] == 0x21 && (stream[13] == 0 || stream[13] == 0x31))
    return "looser: PROXY of UNSPEC or a Unix socket";
  if (heard.empty())
    return whole_request ? "!we take it, HAProxy does not" : "a header that reaches into the request";
  if (heard == "400") return whole_request ? "!HAProxy sees another end" : "agree: taken, the request is cut";
  if (ours.local) return "agree: local";
  const std::string expected = ours.client.address.text() + " " + std::to_string(ours.client.port) + " " +
                               ours.destination.address.text() + " " + std::to_string(ours.destination.port) +
                               " " + tlv(ours, 2) + ". " + tlv(ours, 5) + ".";
  return without_mapping(heard) == expected ? "agree: addresses, authority and unique id"
                                            : "!it heard " + heard + ", we " + expected;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t headers = 20'000, seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--headers") == 0) {
      headers = strtoull(argv[i + 1], nullptr, 10);
    } else if (strcmp(argv[i], "--seed") == 0) {
      seed = strtoull(argv[i + 1], nullptr, 10);
    } else {
      return fprintf(stderr, "proxy_differential [--headers N] [--seed N]\n"), 2;
    }
  }
  if (::geteuid() != 0 || ::access("/usr/sbin/haproxy", X_OK) != 0)
    return fprintf(stderr, "skipped: needs root and haproxy\n"), kSkipped;
  const Netns netns;
  const Netns::Inside inside(netns);
  const TempDir directory;
  Process key({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
               "-subj", "/CN=example.net", "-keyout", directory.path() + "/both.pem.key", "-out",
               directory.path() + "/both.pem"});
  if (key.wait_exit() != 0) return fprintf(stderr, "%s\n", key.output().c_str()), 1;
  const std::string file = directory.write("haproxy.cfg", configuration(directory.path()));
  const TcpListener server(at("127.0.0.1", kServer));
  Process haproxy({"/usr/sbin/haproxy", "-db", "-f", file});
  if (!wait_until([] { return TcpStream::try_connect(at("127.0.0.1", kReads)) == 0; }))
    return fprintf(stderr, "%s\n", haproxy.output().c_str()), 1;

  std::mt19937_64 random(seed);
  Tally tally;
  for (size_t i = 0; i < std::max<uint64_t>(headers / 20, kWayCount * 3); ++i)
    hear(i % kWayCount, server,
         i / kWayCount % 3 == 0   ? AF_INET
         : i / kWayCount % 3 == 1 ? AF_INET6
                                  : AF_UNIX,
         &random, &tally, directory.path());
  for (uint64_t i = 0; i < headers; ++i) {
    Said said = say(&random);
    const bool whole = random() % 2 == 0;
    for (size_t harms = whole ? 0 : 1 + random() % 2; harms > 0 && !said.header.empty(); --harms)
      damage(&said.header, &random);
    std::string line = compare_heard(said.header, tell(said.header, random() % 2));
    if (whole && line == "agree: refused") line = "!both refuse what is whole";
    tally.count(line[0] == '!' ? line : (whole ? "ours, whole: " : "ours, damaged: ") + line, said.header);
  }
  printf("%llu headers, seed %llu\n", static_cast<unsigned long long>(headers),
         static_cast<unsigned long long>(seed));
  for (const auto& [line, count] : tally.lines)
    printf("%8llu  %s\n", static_cast<unsigned long long>(count), line.c_str());
  return tally.explained ? 0 : 1;
}
