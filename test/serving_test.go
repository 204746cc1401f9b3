package test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/ingest"
	"eboot/internal/testutil"
)

// otherERTS is a version that no installed Erlang has.
const otherERTS = "99.1"

// release writes a small tree whose boot script is its version.
func release(t testing.TB, version string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "releases", "1", "start.boot"), "script of "+version)
	write(t, filepath.Join(dir, "lib", "app-1", "ebin", "m.beam"), "code of "+version)
	return dir
}

func (s *server) publishRelease(t testing.TB, version, erts, dir, channel string) (api.PublishOutcome, error) {
	t.Helper()
	source, err := ingest.Open(t.Context(), dir, ingest.Options{ERTS: []string{erts}})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	found := source.Found()
	return s.Client.Publish(t.Context(), api.Publish{
		Ref: eboot.Ref{Name: "app", Version: version}, ERTS: found.ERTS, BootScript: found.BootScript, SysConfig: found.SysConfig, Channel: channel, Source: source,
	})
}

func (s *server) mustPublish(t testing.TB, version, erts string) {
	t.Helper()
	if _, err := s.publishRelease(t, version, erts, release(t, version+" for "+erts), eboot.DefaultChannel); err != nil {
		t.Fatal(err)
	}
}

// connect discovers as a slave with that ERTS and connects.
func (s *server) connect(t testing.TB, erts string) *testutil.FileClient {
	t.Helper()
	var client *testutil.FileClient
	testutil.Poll(t, 10*time.Second, "server is to answer discovery for ERTS "+erts, func() bool {
		conn := testutil.ListenUDP(t, "127.0.0.1:0")
		defer conn.Close()
		replies := testutil.Discover(t, conn, erts, 200*time.Millisecond, s.Address)
		if len(replies) == 0 {
			return false
		}
		client = testutil.Dial(t, netip.AddrPortFrom(netip.MustParseAddr(s.Address), replies[0].Port).String())
		return true
	})
	return client
}

// get fetches a file below the root /opt/erlang and returns it as text.
func get(t testing.TB, c *testutil.FileClient, path string) string {
	t.Helper()
	reply, err := c.Request(testutil.Tuple{testutil.Atom("get"), testutil.Text("/opt/erlang/" + path)})
	if err != nil {
		t.Fatalf("get %s: %v", path, err)
	}
	return testutil.Format(reply)
}

func wantIn(t testing.TB, reply, part string) {
	t.Helper()
	if !strings.Contains(reply, part) {
		t.Errorf("reply %s does not hold %q", reply, part)
	}
}

// ended reports whether the peer has closed the connection within the time given.
func ended(c *testutil.FileClient, within time.Duration) bool {
	_ = c.Conn().SetReadDeadline(time.Now().Add(within))
	_, err := c.Conn().Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && (!errors.As(err, &timeout) || !timeout.Timeout())
}

var testRoots = []string{"/opt/erlang"}

func startAllowed(t *testing.T) *server {
	t.Helper()
	s := startServer(t, serverOptions{Roots: testRoots})
	s.Allow(t, "127.0.0.0/8")
	return s
}

// A port stands for an ERTS version: TCP carries none.
func TestTwoERTSVersionsSideBySide(t *testing.T) {
	s := startAllowed(t)
	s.mustPublish(t, "1", "13.1.5")
	s.mustPublish(t, "1", otherERTS)
	wantIn(t, get(t, s.connect(t, "13.1.5"), "bin/start.boot"), "script of 1 for 13.1.5")
	wantIn(t, get(t, s.connect(t, otherERTS), "bin/start.boot"), "script of 1 for "+otherERTS)

	conn := testutil.ListenUDP(t, "127.0.0.1:0")
	if replies := testutil.Discover(t, conn, "12.0", 300*time.Millisecond, s.Address); len(replies) != 0 {
		t.Errorf("a version that nobody published was answered: %v", replies)
	}
	e, err := s.Client.Explain(t.Context(), netip.MustParseAddr("127.0.0.1"))
	if err != nil || e.Boots || !strings.Contains(e.Advice, "ERTS 12.0") {
		t.Errorf("explain: %+v, %v", e, err)
	}
}

func TestDeniedSlaveIsCutOffWithinASecond(t *testing.T) {
	s := startServer(t, serverOptions{Roots: testRoots})
	s.Allow(t, "127.0.0.1")
	s.mustPublish(t, "1", "13.1.5")
	c := s.connect(t, "13.1.5")
	wantIn(t, get(t, c, "bin/start.boot"), "script of 1")

	s.Allow(t, "10.0.0.0/8") // a change that does not concern it
	wantIn(t, get(t, c, "lib/app-1/ebin/m.beam"), "code of 1")
	s.Deny(t, "127.0.0.1/32")
	if !ended(c, time.Second) {
		t.Error("the connection of a denied slave was open after a second")
	}
	conn := testutil.ListenUDP(t, "127.0.0.1:0")
	if replies := testutil.Discover(t, conn, "13.1.5", 300*time.Millisecond, s.Address); len(replies) != 0 {
		t.Errorf("a denied slave was answered: %v", replies)
	}
}

// A boot sees one bundle, whatever is published meanwhile; the next boot sees the new one.
func TestBootIsPinnedToItsBundle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startServer(t, serverOptions{Roots: testRoots, DataDir: dir})
	s.Allow(t, "127.0.0.0/8")
	s.mustPublish(t, "1", "13.1.5")
	running := s.connect(t, "13.1.5")
	wantIn(t, get(t, running, "bin/start.boot"), "script of 1")
	s.mustPublish(t, "2", "13.1.5")
	wantIn(t, get(t, running, "lib/app-1/ebin/m.beam"), "code of 1")
	// The client closes a connection after 60 s without use; the next request comes on another.
	running.Close()
	wantIn(t, get(t, s.connect(t, "13.1.5"), "lib/app-1/ebin/m.beam"), "code of 1")

	// What is pinned is not removed, and survives a restart of the server.
	ref := eboot.Ref{Name: "app", Version: "1"}
	if _, err := s.Client.RemoveBundle(t.Context(), ref, "", false); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("remove a bundle that a slave runs: %v", err)
	}
	s.Stop(t)
	s = startServer(t, serverOptions{Roots: testRoots, DataDir: dir, Address: s.Address})
	wantIn(t, get(t, s.connect(t, "13.1.5"), "lib/app-1/ebin/m.beam"), "code of 1")

	rebooted := s.connect(t, "13.1.5")
	wantIn(t, get(t, rebooted, "bin/start.boot"), "script of 2")
	wantIn(t, get(t, rebooted, "lib/app-1/ebin/m.beam"), "code of 2")
	if _, err := s.Client.RemoveBundle(t.Context(), ref, "", false); err != nil {
		t.Errorf("remove a bundle that nobody runs: %v", err)
	}
}

// A blob that rots is not served: the connection ends, discovery is silent, and
// publishing the same content heals it.
func TestDamagedBlobIsNeverServed(t *testing.T) {
	s := startAllowed(t)
	dir := release(t, "1")
	large := strings.Repeat("large file ", 100_000)
	write(t, filepath.Join(dir, "lib", "app-1", "priv", "large"), large)
	if _, err := s.publishRelease(t, "1", "13.1.5", dir, eboot.DefaultChannel); err != nil {
		t.Fatal(err)
	}
	c := s.connect(t, "13.1.5")
	wantIn(t, get(t, c, "bin/start.boot"), "script of 1")

	digest := eboot.DigestOf([]byte(large)).String()
	blob := filepath.Join(s.DataDir, "store", "blobs", digest[:2], digest)
	damage(t, blob)
	reply, err := c.Request(testutil.Tuple{testutil.Atom("get"), testutil.Text("/opt/erlang/lib/app-1/priv/large")})
	if err == nil {
		t.Fatalf("a damaged file was answered with %.60s", testutil.Format(reply))
	}
	testutil.Poll(t, 5*time.Second, "discovery is to fall silent", func() bool {
		conn := testutil.ListenUDP(t, "127.0.0.1:0")
		defer conn.Close()
		return len(testutil.Discover(t, conn, "13.1.5", 200*time.Millisecond, s.Address)) == 0
	})
	ready, err := s.Client.Readiness(t.Context())
	if err != nil || ready.Ready || len(ready.Damaged) != 1 || ready.Damaged[0].Digest.String() != digest {
		t.Errorf("readiness: %+v, %v", ready, err)
	}
	result, err := s.Client.VerifyBundle(t.Context(), eboot.Ref{Name: "app", Version: "1"}, nil)
	if err != nil || result.OK() {
		t.Errorf("verify: %+v, %v", result, err)
	}

	outcome, err := s.publishRelease(t, "1", "13.1.5", dir, "")
	if err != nil || outcome.Changed || outcome.SentBlobs != 1 {
		t.Errorf("healing publish: %+v, %v", outcome, err)
	}
	c = s.connect(t, "13.1.5")
	wantIn(t, get(t, c, "bin/start.boot"), "script of 1")
	wantIn(t, get(t, c, "lib/app-1/priv/large"), "1100000 bytes, sha256 "+digest[:12])
}

// damage flips one bit in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if os.IsPermission(err) {
		t.Skip("needs root: blobs are read-only")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, 1000); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	one[0] ^= 1
	if _, err := f.WriteAt(one, 1000); err != nil {
		t.Fatal(err)
	}
}

func TestPublishAgain(t *testing.T) {
	s := startAllowed(t)
	dir := release(t, "1")
	if _, err := s.publishRelease(t, "1", "13.1.5", dir, ""); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "lib", "app-1", "ebin", "m.beam"), later, later); err != nil {
		t.Fatal(err)
	}
	outcome, err := s.publishRelease(t, "1", "13.1.5", dir, "")
	if err != nil || outcome.Changed || outcome.SentBlobs != 0 {
		t.Errorf("touched: %+v, %v", outcome, err)
	}
	write(t, filepath.Join(dir, "lib", "app-1", "ebin", "m.beam"), "other code")
	if _, err := s.publishRelease(t, "1", "13.1.5", dir, ""); !errors.Is(err, eboot.ErrConflict) {
		t.Errorf("other content under the same name: %v", err)
	}
	outcome, err = s.publishRelease(t, "2", "13.1.5", dir, "")
	if err != nil || outcome.SentBlobs != 1 {
		t.Errorf("one module changed: %+v, %v", outcome, err)
	}
}

// Removing a bundle gives its space back, and takes nothing that another needs.
func TestRemoveCollects(t *testing.T) {
	s := startAllowed(t)
	s.mustPublish(t, "1", "13.1.5")
	s.mustPublish(t, "2", "13.1.5")
	before, err := s.Client.Readiness(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.RemoveBundle(t.Context(), eboot.Ref{Name: "app", Version: "1"}, "", false); err != nil {
		t.Fatal(err)
	}
	testutil.Poll(t, 10*time.Second, "blobs of the removed bundle are to be collected", func() bool {
		now, err := s.Client.Readiness(t.Context())
		return err == nil && now.Storage.Blobs < before.Storage.Blobs
	})
	if result, err := s.Client.VerifyBundle(t.Context(), eboot.Ref{Name: "app", Version: "2"}, nil); err != nil || !result.OK() {
		t.Errorf("verify: %+v, %v", result, err)
	}
}

// A server that starts alone after a power cut has an empty state machine until Raft
// has a leader; slaves are served from the cache before that.
func TestServesFromTheCacheBeforeRaft(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, serverOptions{Roots: testRoots, DataDir: dir})
	s.Allow(t, "127.0.0.0/8")
	s.mustPublish(t, "1", "13.1.5")
	s.Stop(t)
	// Without its log the state machine stays empty: what is served is the cache.
	if err := os.Rename(filepath.Join(dir, "raft"), filepath.Join(dir, "raft.away")); err != nil {
		t.Fatal(err)
	}
	s = startServer(t, serverOptions{Roots: testRoots, DataDir: dir, Address: s.Address})
	wantIn(t, get(t, s.connect(t, "13.1.5"), "bin/start.boot"), "script of 1")
}

func TestRequestIDMakesARetrySafe(t *testing.T) {
	s := startAllowed(t)
	prefix, _ := eboot.ParsePrefix("10.9.0.0/16")
	entries := []eboot.WhitelistEntry{{Prefix: prefix, Channel: eboot.DefaultChannel}}
	first, err := s.agent.Allow(t.Context(), api.Write{RequestID: "once"}, entries)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.Deny(t.Context(), prefix); err != nil {
		t.Fatal(err)
	}
	again, err := s.agent.Allow(t.Context(), api.Write{RequestID: "once"}, entries)
	if err != nil || again != first {
		t.Errorf("the repeat answered %+v, %v; the first %+v", again, err, first)
	}
	if check, err := s.Client.Check(t.Context(), prefix.Addr()); err != nil || check.Whitelisted {
		t.Errorf("the repeat did it again: %+v, %v", check, err)
	}
}

func TestAcceptanceTenServersStartAndStopClean(t *testing.T) {
	if os.Getenv("EBOOT_TEST_ACCEPTANCE") == "" {
		t.Skip("full count; runs in make acceptance")
	}
	dir := t.TempDir()
	address := takeAddress(t)
	for range 10 {
		s := startServer(t, serverOptions{Roots: testRoots, DataDir: dir, Address: address})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := s.Client.Status(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		s.Stop(t)
	}
}

// A log that cannot be read stops writes, not slaves.
func TestServesFromTheCacheWhenTheLogIsDamaged(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, serverOptions{Roots: testRoots, DataDir: dir})
	s.Allow(t, "127.0.0.0/8")
	s.mustPublish(t, "1", "13.1.5")
	s.Stop(t)
	if err := os.WriteFile(filepath.Join(dir, "raft", "raft.db"), []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	s = startServer(t, serverOptions{Roots: testRoots, DataDir: dir, Address: s.Address})
	wantIn(t, get(t, s.connect(t, "13.1.5"), "bin/start.boot"), "script of 1")
	prefix, _ := eboot.ParsePrefix("10.0.0.0/8")
	if _, err := s.Client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: prefix}); !errors.Is(err, eboot.ErrNoLeader) {
		t.Errorf("a write: %v", err)
	}
	if ready, err := s.Client.Readiness(t.Context()); err != nil || ready.Ready {
		t.Errorf("readiness: %+v, %v", ready, err)
	}
}

// One tree published for several ERTS versions is served to each.
func TestOneTreeForSeveralERTSVersions(t *testing.T) {
	s := startAllowed(t)
	versions := []string{"13.1.5", "14.0", otherERTS}
	source, err := ingest.Open(t.Context(), release(t, "1"), ingest.Options{ERTS: versions})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	outcome, err := s.Client.Publish(t.Context(), api.Publish{
		Ref: eboot.Ref{Name: "app", Version: "1"}, ERTS: versions, BootScript: source.Found().BootScript, Channel: eboot.DefaultChannel, Source: source,
	})
	if err != nil || len(outcome.Bundles) != len(versions) {
		t.Fatalf("%+v, %v", outcome, err)
	}
	for _, erts := range versions {
		wantIn(t, get(t, s.connect(t, erts), "bin/start.boot"), "script of 1")
	}
}
