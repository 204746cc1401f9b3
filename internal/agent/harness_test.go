package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"eboot"
	"eboot/api"
	"eboot/bootproto"
	"eboot/config"
	"eboot/fsm"
	"eboot/internal/testutil"
)

// A probe of memberlist that is under way waits for its time to be over, and Shutdown does
// not wait for it.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

const (
	testERTS = "13.1.5"
	testRoot = "/opt/erlang"

	// patience is how long what has to come is waited for, an election on a busy machine included.
	// It measures nothing.
	patience = 20 * time.Second
)

// UDP port 4368 is fixed, so that each server has a loopback address of its own. Two
// runs at once begin at different ones, and pass over what the other has.
var addresses atomic.Uint32

func takeAddress(t *testing.T) netip.Addr {
	t.Helper()
	for range 250 {
		n := uint32(os.Getpid())*31 + addresses.Add(1)
		address := netip.AddrFrom4([4]byte{127, 0, 3, byte(1 + n%250)})
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, bootproto.Port)))
		if err == nil {
			_ = conn.Close()
			return address
		}
	}
	t.Fatal("all loopback addresses of these tests are in use")
	return netip.Addr{}
}

// settings are those of a server with a data directory and an address of its own.
func settings(t *testing.T) config.Config {
	t.Helper()
	c := config.Default()
	c.DataDir = t.TempDir()
	address := takeAddress(t)
	c.Boot.Bind = []netip.Addr{address}
	c.Boot.Roots = []string{testRoot}
	c.API = config.API{Bind: netip.AddrPortFrom(address, 0), Insecure: true}
	return c
}

// server is a running Agent.
type server struct {
	*Agent
	client *api.Client
	log    *logged

	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Run; after done
}

// start runs an Agent until the test ends, or stop is called.
func start(t *testing.T, c config.Config) *server {
	t.Helper()
	s := &server{log: &logged{}, done: make(chan struct{})}
	var err error
	s.Agent, err = New(Options{Config: c, Logger: s.log.logger(t), Version: "test"})
	if err != nil {
		t.Fatalf("new agent: %v", err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(s.done)
		s.err = s.Run(ctx)
	}()
	t.Cleanup(func() { s.stop(t) })
	select {
	case <-s.Started():
	case <-s.done:
		t.Fatalf("agent ended at once: %v", s.err)
	case <-time.After(20 * time.Second):
		t.Fatal("agent has not started after 20 s")
	}
	if s.client, err = api.NewClient(api.ClientOptions{Addresses: []string{s.APIAddress()}, Timeout: 10 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	return s
}

// stop ends the server gracefully. It may be called repeatedly.
func (s *server) stop(t *testing.T) {
	t.Helper()
	s.cancel()
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		t.Fatal("agent has not ended 30 s after it was told to")
	}
	if s.err != nil {
		t.Errorf("agent ended with %v", s.err)
	}
}

// logged keeps what a server logs, to be shown when its test fails.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) logger(t *testing.T) hclog.Logger {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return hclog.New(&hclog.LoggerOptions{Name: "eboot", Level: hclog.Debug, Output: l, DisableTime: true})
}

// Write appends a line.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is all there is.
func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// files is a tree in memory: contents by path. It is what is published.
type files map[string]string

// release is a small tree that tells its version.
func release(version string) files {
	return files{
		"releases/1/start.boot":   "script of " + version,
		"lib/app-1/ebin/m.beam":   "code of " + version,
		"lib/app-1/priv/constant": "the same in every version",
	}
}

var _ api.Source = files{}

// Manifest lists the files and every directory above them.
func (f files) Manifest() *eboot.Manifest {
	m := &eboot.Manifest{}
	directories := map[string]bool{".": true}
	for name, content := range f {
		m.Entries = append(m.Entries, eboot.ManifestEntry{Path: name, Kind: eboot.KindFile, Size: int64(len(content)), Digest: eboot.DigestOf([]byte(content))})
		for dir := path.Dir(name); !directories[dir]; dir = path.Dir(dir) {
			directories[dir] = true
			m.Entries = append(m.Entries, eboot.ManifestEntry{Path: dir, Kind: eboot.KindDirectory})
		}
	}
	m.Sort()
	return m
}

// Times are the same for all.
func (f files) Times() []int64 {
	return slices.Repeat([]int64{1_700_000_000}, len(f.Manifest().Entries))
}

// Blobs puts the contents.
func (f files) Blobs(_ context.Context, want func(eboot.Digest) bool, put func(eboot.Digest, int64, io.Reader) error) error {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if d := eboot.DigestOf([]byte(f[name])); want(d) {
			if err := put(d, int64(len(f[name])), strings.NewReader(f[name])); err != nil {
				return err
			}
		}
	}
	return nil
}

// request is the first request of a publish of f as app@version.
func (f files) request(version string) api.PublishRequest {
	return api.PublishRequest{
		Name: "app", Version: version, ERTS: []string{testERTS}, BootScript: "releases/1/start.boot",
		Manifest: f.Manifest().Encode(), Times: eboot.EncodeTimes(f.Times()),
	}
}

func app(version string) eboot.Ref { return eboot.Ref{Name: "app", Version: version} }

// publish publishes release(version) as app@version and moves channel to it.
func (s *server) publish(t *testing.T, version, channel string) api.PublishOutcome {
	t.Helper()
	outcome, err := s.client.Publish(t.Context(), api.Publish{
		Ref: app(version), ERTS: []string{testERTS}, BootScript: "releases/1/start.boot", Channel: channel, Source: release(version),
	})
	if err != nil {
		t.Fatalf("publish app@%s: %v", version, err)
	}
	return outcome
}

func (s *server) allow(t *testing.T, prefix, channel string) {
	t.Helper()
	p, err := eboot.ParsePrefix(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: p, Channel: channel}); err != nil {
		t.Fatalf("allow %s: %v", prefix, err)
	}
}

func (s *server) whitelisted(t *testing.T, slave string) bool {
	t.Helper()
	check, err := s.client.Check(t.Context(), netip.MustParseAddr(slave))
	if err != nil {
		t.Fatalf("check %s: %v", slave, err)
	}
	return check.Whitelisted
}

// notReady wants that the server is not ready, for a reason that holds part.
func (s *server) notReady(t *testing.T, part string) {
	t.Helper()
	var r eboot.Readiness
	testutil.Poll(t, patience, "a reason not to be ready: "+part, func() bool {
		var err error
		if r, err = s.client.Readiness(t.Context()); err != nil {
			t.Fatal(err)
		}
		return !r.Ready && strings.Contains(strings.Join(r.Reasons, "\n"), part)
	})
}

// settled is the status once the server uses all that it knows: a new cluster raises its version
// after it was founded, while the first requests are answered.
func (s *server) settled(t *testing.T) eboot.ClusterStatus {
	t.Helper()
	testutil.Poll(t, patience, "the cluster's version is to be raised", func() bool { return s.machine.State().Version() == fsm.Version })
	return s.Status()
}

// ready wants that the server gets ready: another one may have acknowledged a bundle that this
// one is still loading.
func (s *server) ready(t *testing.T) {
	t.Helper()
	var r eboot.Readiness
	testutil.Poll(t, patience, "the server is to be ready", func() bool {
		var err error
		if r, err = s.client.Readiness(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r.Ready
	})
}

// refusesWrites wants that a write fails, that nothing came of it, and that the error
// says why.
func (s *server) refusesWrites(t *testing.T, why string) {
	t.Helper()
	p, _ := eboot.ParsePrefix("10.77.77.77")
	_, err := s.client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: p})
	if !errors.Is(err, eboot.ErrNoLeader) || !strings.Contains(err.Error(), why) {
		t.Errorf("write: %v; want no leader, with %q", err, why)
	}
	if s.whitelisted(t, "10.77.77.77") {
		t.Error("the refused write is visible")
	}
}

// discover asks as a slave on 127.0.0.1 and returns where files are served.
func (s *server) discover(t *testing.T) (string, bool) {
	t.Helper()
	host := s.config.Boot.Bind[0].String()
	conn := testutil.ListenUDP(t, "127.0.0.1:0")
	defer func() { _ = conn.Close() }()
	replies := testutil.Discover(t, conn, testERTS, 100*time.Millisecond, host)
	if len(replies) == 0 {
		return "", false
	}
	return fmt.Sprintf("%s:%d", host, replies[0].Port), true
}

// answered waits, for at most within, until a slave on 127.0.0.1 is told where files are served.
func (s *server) answered(t *testing.T, within time.Duration) (target string) {
	t.Helper()
	testutil.Poll(t, within, "discovery is to be answered", func() (ok bool) {
		target, ok = s.discover(t)
		return ok
	})
	return target
}

// connect discovers, for at most within, and connects from source.
func (s *server) connect(t *testing.T, source string, within time.Duration) *testutil.FileClient {
	t.Helper()
	target := s.answered(t, within)
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := dialer.DialContext(t.Context(), "tcp4", target)
	if err != nil {
		t.Fatal(err)
	}
	return testutil.NewFileClient(t, conn)
}

// ask sends {operation, name} and returns the reply as text.
func ask(t *testing.T, c *testutil.FileClient, operation, name string) string {
	t.Helper()
	reply, err := c.Request(testutil.Tuple{testutil.Atom(operation), testutil.Text(name)})
	if err != nil {
		t.Fatalf("%s %s: %v", operation, name, err)
	}
	return testutil.Format(reply)
}

// wantReply asks for a file below the root and wants part in the reply.
func wantReply(t *testing.T, c *testutil.FileClient, operation, name, part string) {
	t.Helper()
	if reply := ask(t, c, operation, testRoot+"/"+name); !strings.Contains(reply, part) {
		t.Errorf("%s %s: %s, want %q", operation, name, reply, part)
	}
}

// boots wants that a slave on source boots that version.
func (s *server) boots(t *testing.T, source, version string) {
	t.Helper()
	c := s.connect(t, source, patience)
	defer c.Close()
	wantReply(t, c, "get", "bin/start.boot", "script of "+version)
	wantReply(t, c, "get", "lib/app-1/ebin/m.beam", "code of "+version)
}

// blobs are the names of the blobs on disk.
func blobs(t *testing.T, dataDir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dataDir, "store", "blobs", "*", "*"))
	if err != nil || len(found) == 0 {
		t.Fatalf("blobs in %s: %d, %v", dataDir, len(found), err)
	}
	return found
}

// spoil flips the bits of one byte in the middle of a file.
func spoil(t *testing.T, name string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil || len(data) == 0 {
		t.Fatalf("spoil %s: %d bytes, %v", name, len(data), err)
	}
	data[len(data)/2] ^= 0xff
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func blobPath(dataDir string, d eboot.Digest) string {
	return filepath.Join(dataDir, "store", "blobs", d.String()[:2], d.String())
}

// moveAway takes parts of a data directory out of it.
func moveAway(t *testing.T, dataDir string, names ...string) {
	t.Helper()
	away := t.TempDir()
	for _, name := range names {
		if err := os.Rename(filepath.Join(dataDir, name), filepath.Join(away, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
