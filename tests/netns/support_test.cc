// SPDX-License-Identifier: Apache-2.0
// The instruments themselves, between two plain sockets: a reader that overlooked a wrong byte or an injector
// that injected nothing would make every other test pass.
#include <gtest/gtest.h>

#include "support/netns.h"
#include "support/pattern.h"
#include "support/raw_segment.h"

namespace penstock::test {
namespace {

struct Plain : testing::Test {
  Netns netns;
  Netns::Inside inside{netns};
  TcpListener listener{at("127.0.0.1", 0)};
  TcpStream client{TcpStream::connect(listener.address())};
  TcpStream server{listener.accept()};
};

TEST_F(Plain, ReaderFindsTheFirstWrongByte) {
  PatternReader reader(server, 1);
  std::string bytes = pattern(1, 100'000);
  bytes.erase(70'001, 1);
  client.send_all_with_fin(bytes);
  const auto result = reader.finish();
  EXPECT_EQ(result.bytes, 99'999u);
  // The byte that takes the place of the lost one may be equal to it.
  ASSERT_TRUE(result.wrong_at.has_value());
  EXPECT_GE(*result.wrong_at, 70'001u);
  EXPECT_LE(*result.wrong_at, 70'004u);
}

TEST_F(Plain, PatternIsTheSameAtEveryAlignment) {
  const std::string whole = pattern(9, 1000);
  for (size_t offset = 0; offset < 20; ++offset)
    EXPECT_EQ(pattern(9, 900, offset), whole.substr(offset, 900));
}

TEST_F(Plain, ReaderTellsResetFromFin) {
  PatternReader reader(server, 1);
  client.reset();
  EXPECT_EQ(reader.finish().end, End::reset);
}

TEST_F(Plain, OverlappingSegmentArrives) {
  const RawSegments raw;
  client.send_all("0123456789");
  EXPECT_EQ(server.recv_exactly(10), "0123456789");
  raw.inject(client, -4, "6789ABCDEF");
  EXPECT_EQ(server.recv_exactly(6), "ABCDEF");  // not sent by the client's TCP yet
  client.send_all("ABCDEFGH");
  EXPECT_EQ(server.recv_exactly(2), "GH");
}

TEST_F(Plain, SegmentFromAheadWaitsForTheGap) {
  const RawSegments raw;
  raw.inject(client, 4, "4567");
  EXPECT_FALSE(server.readable_within(50ms));
  client.send_all("0123");
  EXPECT_EQ(server.recv_exactly(8), "01234567");
}

TEST_F(Plain, ChunkSentAsOverlappingAndReorderedSegments) {
  const RawSegments raw;
  client.send_all("0123456789");
  EXPECT_EQ(server.recv_exactly(10), "0123456789");
  raw.send_as(client, "0123456789", "ABCDEFGH", {{-4, 3}});
  EXPECT_EQ(server.recv_exactly(3), "ABC");
  EXPECT_EQ(server.recv_exactly(5), "DEFGH");  // left out: retransmitted
  raw.send_as(client, "EFGH", "IJKLMNOP", {{4, 8}, {-4, 6}});
  EXPECT_EQ(server.recv_exactly(8), "IJKLMNOP");
  server.send_all("the other way");
  EXPECT_EQ(client.recv_exactly(13), "the other way");
  client.send_all_with_fin("Q");
  EXPECT_EQ(server.recv_exactly(1), "Q");
  EXPECT_EQ(server.recv_to_end(), End::fin);
}

}  // namespace
}  // namespace penstock::test
