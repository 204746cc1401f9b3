package bootproto

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// disk is a Host that serves a part of this machine's disk, as erl_boot_server
// does. Small files are kept in memory.
type disk struct {
	root  string
	cache sync.Map // name → []byte, or the error
}

func (d *disk) Admit(netip.Addr) error { return nil }

func (d *disk) Connect(netip.AddrPort, string) (Session, error) { return d, nil }

var _ Session = (*disk)(nil)

func (d *disk) Get(name []byte) (Content, error) {
	if known, ok := d.cache.Load(string(name)); ok {
		if err, ok := known.(error); ok {
			return Content{}, err
		}
		return Content{Data: known.([]byte)}, nil
	}
	file, err := os.Open(string(name))
	if err != nil {
		d.cache.Store(string(name), err)
		return Content{}, err
	}
	info, err := file.Stat()
	if err == nil && info.Size() > 256<<10 {
		return Content{Reader: file, Size: info.Size()}, nil
	}
	_ = file.Close()
	data, err := os.ReadFile(string(name))
	if err == nil {
		d.cache.Store(string(name), data)
	}
	return Content{Data: data}, err
}

func (d *disk) List(name []byte) ([]string, error) {
	entries, err := os.ReadDir(string(name))
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, err
}

func (d *disk) Stat(name []byte, follow bool) (FileInfo, error) {
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	info, err := stat(string(name))
	if err != nil {
		return FileInfo{}, err
	}
	kind := Regular
	switch {
	case info.IsDir():
		kind = Directory
	case info.Mode()&fs.ModeSymlink != 0:
		kind = Symlink
	}
	return FileInfo{Size: info.Size(), Type: kind, Exec: info.Mode()&0o100 != 0, ModTime: info.ModTime().Unix()}, nil
}

func (d *disk) WorkingDirectory() string { return d.root }
func (d *disk) Allowed() error           { return nil }
func (d *disk) Sent(int)                 {}
func (d *disk) Close(error)              {}

// answererFunc is an Answerer made of a function.
type answererFunc func(Query) (Offer, error)

func (f answererFunc) Answer(q Query) (Offer, error) { return f(q) }

// needErl skips the test where there is no Erlang, unless it must be there.
func needErl(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("erl"); err != nil {
		if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
			t.Fatal(err)
		}
		t.Skip("no erl on PATH")
	}
}

// TestStockNodeBoots boots a stock node, in both modes.
func TestStockNodeBoots(t *testing.T) {
	needErl(t)
	erl, err := exec.LookPath("erl")
	if err != nil {
		t.Fatal(err)
	}
	if erl, err = filepath.EvalSymlinks(erl); err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(filepath.Dir(erl))
	logger := testLogger(t)
	server := NewFileServer(FileServerOptions{Host: &disk{root: root}, Logger: logger})
	ln, err := ListenFiles(netip.MustParseAddrPort("127.0.0.22:0"))
	if err != nil {
		t.Fatal(err)
	}
	serveUntilCleanup(t, server, ln)
	port := netip.MustParseAddrPort(ln.Addr().String()).Port()
	// The port is fixed. A server of another test may hold it on all addresses.
	var udp *net.UDPConn
	eventually(t, "UDP 4368 is free", func() bool {
		udp, err = ListenDiscovery(netip.MustParseAddr("127.0.0.22"))
		return !errors.Is(err, syscall.EADDRINUSE)
	})
	if err != nil {
		t.Fatal(err)
	}
	var queries atomic.Int32
	discovery := NewDiscovery(DiscoveryOptions{Logger: logger, Answerer: answererFunc(func(q Query) (Offer, error) {
		queries.Add(1)
		if q.Asked != netip.MustParseAddr("127.0.0.22") || !strings.Contains(q.ERTS, ".") {
			return Offer{}, errors.New("an odd query")
		}
		return Offer{Port: port}, nil
	})})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- discovery.Serve(ctx, udp) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	for _, mode := range []string{"interactive", "embedded"} {
		deadline, stop := context.WithTimeout(t.Context(), 30*time.Second)
		before := server.Stats()
		began := time.Now()
		out, err := exec.CommandContext(deadline, "erl", "-loader", "inet", "-hosts", "127.0.0.22", "-id", "x", "-mode", mode,
			"-noshell", "-eval", `io:format("~s ~p", [erlang:system_info(version), erl_prim_loader:get_cwd()]), init:stop()`).CombinedOutput()
		stop()
		if want := `{ok,"` + root + `"}`; err != nil || !strings.HasSuffix(string(out), want) {
			t.Fatalf("%s: %v: %s", mode, err, out)
		}
		after := server.Stats()
		t.Logf("%s: %s in %s, %d requests, %d of them refused, %d bytes", mode, out, time.Since(began).Round(time.Millisecond),
			after.Requests-before.Requests, after.Errors-before.Errors, after.BytesSent-before.BytesSent)
		if after.Requests-before.Requests < 50 {
			t.Errorf("%s: only %d requests", mode, after.Requests-before.Requests)
		}
	}
	if queries.Load() != 2 {
		t.Errorf("%d queries for two boots: a first answer of priority 0 must end the search", queries.Load())
	}
	if stats := server.Stats(); stats.Malformed != 0 {
		t.Errorf("stats: %+v", stats)
	}
}

// TestPosixAtoms compares the names of errors with those of OTP.
func TestPosixAtoms(t *testing.T) {
	needErl(t)
	// Each of these is provoked in Erlang, whose atom is then compared.
	dir := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
		os.Symlink("loop", filepath.Join(dir, "loop")),
	); err != nil {
		t.Fatal(err)
	}
	names := []string{"none", "file/x", ".", "loop", strings.Repeat("x", 300)}
	var want []string
	for _, name := range names {
		_, err := os.ReadFile(dir + "/" + name)
		var path *fs.PathError
		if !errors.As(err, &path) {
			t.Fatalf("%s: %v", name, err)
		}
		errno, _ := errnoOf(err)
		want = append(want, posixAtom(errno))
	}
	out, err := exec.Command("erl", "-noshell", "-eval", `
		[begin {error, R} = prim_file:read_file(F), io:format("~s ", [R]) end || F <- init:get_plain_arguments()],
		{error, E} = prim_file:get_cwd("C:"), io:format("~s ", [E]), halt().`,
		"-extra", dir+"/none", dir+"/file/x", dir+"/.", dir+"/loop", dir+"/"+strings.Repeat("x", 300)).Output()
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, faultNames[faultEnotsup])
	if got := strings.Fields(string(out)); !slices.Equal(got, want) {
		t.Errorf("Erlang says %v, we say %v", got, want)
	}
}
