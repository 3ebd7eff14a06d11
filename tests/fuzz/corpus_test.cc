// SPDX-License-Identifier: Apache-2.0
// Every harness over its own corpus, one test a file. corpus_harnesses.inc is written by CMakeLists.txt.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#define HARNESS(name) extern "C" int name##_one_input(const uint8_t* data, size_t size);
#include "corpus_harnesses.inc"
#undef HARNESS

namespace {

struct Harness {
  const char* name;
  int (*one_input)(const uint8_t*, size_t);
};

#define HARNESS(name) {#name, name##_one_input},
constexpr Harness kHarnesses[] = {
#include "corpus_harnesses.inc"
};
#undef HARNESS

struct CorpusFile : testing::Test {
  CorpusFile(Harness h, std::filesystem::path p) : harness(h), path(std::move(p)) {}
  void TestBody() override {
    std::ifstream in(path, std::ios::binary);
    ASSERT_TRUE(in) << path;
    const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(in), {}};
    EXPECT_EQ(harness.one_input(bytes.data(), bytes.size()), 0);  // a broken contract aborts
  }
  Harness harness;
  std::filesystem::path path;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (const Harness& harness : kHarnesses) {
    size_t files = 0;
    for (const auto& file :
         std::filesystem::directory_iterator(std::filesystem::path(CORPUS_DIR) / harness.name)) {
      testing::RegisterTest(harness.name, file.path().filename().c_str(), nullptr, nullptr, __FILE__,
                            __LINE__, [=]() -> CorpusFile* { return new CorpusFile(harness, file.path()); });
      ++files;
    }
    if (files > 0) continue;
    fprintf(stderr, "%s/%s: no corpus: a harness needs at least one file\n", CORPUS_DIR, harness.name);
    return 1;
  }
  return RUN_ALL_TESTS();
}
