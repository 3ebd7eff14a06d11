// SPDX-License-Identifier: Apache-2.0
// penstock: the operator's command. Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/endpoint.h"
#include "base/log.h"
#include "base/unavailable.h"
#include "commands.h"
#include "cookie.h"

namespace penstock::command {

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

int fail(const std::string& message) {
  std::fputs(("penstock: " + message + "\n").c_str(), stderr);
  return kFailed;
}

namespace {

struct Options {
  Daemon daemon;
  std::string file = "/etc/penstock/penstock.toml";
  std::optional<std::string> env_file;
  Explain explain;
  FlowFilter filter;
  std::string cookie, direction, to, name;
  std::vector<std::string> cookies;
  unsigned patience_s = 60;
  Examined whom;
};

// Checks, and leaves it in decimal: so the daemon knows it.
const CLI::Validator kIsCookie(
    [](std::string& text) -> std::string {
      if (auto cookie = parse_cookie(text)) {
        text = std::to_string(*cookie);
        return "";
      }
      return log::escaped(text) +
             " is no cookie (accepted: 31 as `penstock flows` shows it, sk:1f as `ss -e` does, 0x1f)";
    },
    "");

std::string is_network(const std::string& text) {
  return Cidr::parse(text) ? "" : log::escaped(text) + " is no network (accepted: 192.0.2.0/24, 2001:db8::1)";
}

CLI::App* add_command(CLI::App* app, Options* options, const std::string& name, const std::string& what) {
  CLI::App* command = app->add_subcommand(name, what);
  command->add_flag("--json", options->daemon.json, "Print JSON on one line");
  command->add_option("--socket", options->daemon.socket, "The daemon's admin socket")
      ->type_name("PATH")
      ->capture_default_str();
  return command;
}

void add_configuration(CLI::App* command, Options* options) {
  command->add_option("-c,--config", options->file, "The configuration")
      ->type_name("FILE")
      ->capture_default_str();
  command
      ->add_option("--env-file", options->env_file, "Values of ${NAME} instead of penstock.env beside FILE")
      ->type_name("FILE");
}

void add_commands(CLI::App* app, Options* o, int* exit_code) {
  auto* check_command = add_command(app, o, "check", "Validate a configuration, without the daemon");
  add_configuration(check_command, o);
  check_command->callback([=] { *exit_code = check(o->file, o->env_file, o->daemon.json); });

  auto* explain_command =
      add_command(app, o, "explain",
                  "Which listener, route, upstream and servers a client would get, and the PROXY header");
  explain_command->add_option("--to", o->explain.to, "Where it connects to")
      ->type_name("[ADDRESS]:PORT")
      ->required();
  explain_command->add_option("--from", o->explain.from, "The client")
      ->type_name("ADDRESS[:PORT]")
      ->required();
  explain_command->add_option("--via", o->explain.via, "The trusted proxy that says so")
      ->type_name("ADDRESS");
  explain_command->add_option("--interface", o->explain.interface, "The device the client comes in by")
      ->type_name("DEVICE");
  explain_command->add_option("--sni", o->explain.sni, "The name in its ClientHello")->type_name("NAME");
  explain_command->add_option("--alpn", o->explain.alpn, "The protocols in its ClientHello, in its order")
      ->type_name("NAME")
      ->delimiter(',');
  add_configuration(explain_command, o);
  explain_command->callback([=] {
    o->explain.file = o->file;
    o->explain.env_file = o->env_file;
    o->explain.json = o->daemon.json;
    *exit_code = explain(o->explain);
  });

  add_command(app, o, "probe", "What this kernel and these privileges allow, found by trying")->callback([=] {
    *exit_code = probe(o->daemon.json);
  });

  add_command(app, o, "status", "Listeners, upstreams, totals")->callback([=] {
    *exit_code = status(o->daemon);
  });

  auto* flows_command = add_command(app, o, "flows", "Every live flow, the oldest first");
  flows_command->add_option("--listener", o->filter.listener, "Those of one listener")->type_name("NAME");
  flows_command->add_option("--client", o->filter.client, "Those of clients in this network")
      ->type_name("CIDR")
      ->check(is_network);
  flows_command->callback([=] { *exit_code = flows(o->daemon, o->filter); });

  auto* kill_command = add_command(app, o, "kill", "Reset flows");
  kill_command->add_option("COOKIE", o->cookies, "The flows, as `flows` or `ss -e` shows them")
      ->required()
      ->transform(kIsCookie);
  kill_command->callback([=] { *exit_code = kill(o->daemon, o->cookies); });

  auto* lane_command =
      add_command(app, o, "lane", "Move a direction to another lane (for tests and support)");
  lane_command->add_option("COOKIE", o->cookie, "The flow, as `flows` shows it")
      ->required()
      ->transform(kIsCookie);
  lane_command->add_option("DIRECTION", o->direction)->required()->check(CLI::IsMember({"up", "down"}));
  lane_command->add_option("TO", o->to)->required()->check(CLI::IsMember({"splice", "held", "relay"}));
  lane_command->callback([=] { *exit_code = lane(o->daemon, o->cookie, o->direction, o->to); });

  add_command(app, o, "reload", "Read the configuration anew")->callback([=] {
    *exit_code = reload(o->daemon);
  });
  auto* upgrade_command =
      add_command(app, o, "upgrade", "Another penstockd in the place of the one that runs");
  upgrade_command->add_option("BINARY", o->name, "Else the one at the path that the daemon was started from");
  upgrade_command
      ->add_option("--patience", o->patience_s,
                   "Seconds each of its steps may take; then the old one is back")
      ->check(CLI::Range(1, 600))
      ->capture_default_str();
  upgrade_command->callback([=] { *exit_code = upgrade(o->daemon, o->name, o->patience_s); });
  auto* drain_command = add_command(app, o, "drain", "No new flows for an upstream or one of its servers");
  drain_command->add_option("NAME", o->name, "UPSTREAM or UPSTREAM/SERVER")->required();
  drain_command->callback([=] { *exit_code = drain(o->daemon, o->name); });
  auto* resume_command = add_command(app, o, "resume", "The end of drain");
  resume_command->add_option("NAME", o->name, "UPSTREAM or UPSTREAM/SERVER")->required();
  resume_command->callback([=] { *exit_code = resume(o->daemon, o->name); });

  auto* doctor_command =
      add_command(app, o, "doctor", "Does a server expect the PROXY header it gets? Found by dialling it");
  doctor_command->add_option("UPSTREAM", o->whom.upstream)->required();
  doctor_command->add_option("SERVER", o->whom.server, "As in its `servers`; else the first one");
  doctor_command->add_option("--port", o->whom.port, "Where the server has none, else its own or its check's")
      ->check(CLI::Range(1, 65535));
  doctor_command->callback([=] { *exit_code = doctor(o->daemon, o->whom); });

  for (const std::string_view name : kUnavailableCommands) {
    auto* later = add_command(app, o, std::string(name), "(not available in this version)");
    later->allow_extras();
    later->callback([=] {
      fail(unavailable(name));
      *exit_code = kBadUsage;
    });
  }
}

}  // namespace
}  // namespace penstock::command

int main(int argc, char** argv) {
  using namespace penstock::command;
  CLI::App app("The operator's command of penstockd, the layer-4 edge.", "penstock");
  app.set_version_flag("--version", "penstock " PENSTOCK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit codes: 0 done, 1 failed, 2 bad usage or bad configuration.");
  Options options;
  int exit_code = kDone;
  add_commands(&app, &options, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kDone : kBadUsage;
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) return fail("cannot write to standard output");
  return exit_code;
}
