// SPDX-License-Identifier: Apache-2.0
// main.cc: penstockd's command line.
#include <CLI/CLI.hpp>

#include "daemon/daemon.h"
#include "daemon/engine.h"
#include "daemon/trial.h"

int main(int argc, char** argv) {
  CLI::App app{"penstockd: a layer-4 TCP edge"};
  penstock::daemon::Arguments arguments;
  bool probe = false, json = false;
  app.add_option("-c,--config", arguments.config, "configuration file")->capture_default_str();
  app.add_option("--env-file", arguments.env_file, "instead of penstock.env beside the configuration");
  app.add_flag("--probe", probe, "say what this kernel and these privileges allow, and end");
  app.add_flag("--json", json, "with --probe");
  app.add_option("--trial", arguments.trial)->group("");  // said by the keeper alone
  app.add_option("--kept", arguments.kept)->group("");
  app.set_version_flag("--version", PENSTOCK_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  arguments.after_name = argv + 1;
  if (arguments.trial >= 0) return penstock::daemon::try_upgrade(arguments, arguments.trial);
  return probe ? penstock::daemon::print_probe(json) : penstock::daemon::serve(arguments);
}
