package test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"eboot"
	"eboot/api"
	"eboot/internal/testutil"
)

// secret stands in a file of the host, beside everything that is served.
const secret = "nobody is ever told this"

// hostilePaths are the names of testdata/hostile.paths.
func hostilePaths(t testing.TB, places map[string]string) []string {
	t.Helper()
	data, err := os.ReadFile("testdata/hostile.paths")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, parts := "", regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\d+`).FindAllString(line, -1)
		times := 1
		for _, part := range parts {
			if n, err := strconv.Atoi(part); err == nil {
				times = n
				continue
			}
			text, err := strconv.Unquote(part)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			for name, place := range places {
				text = strings.ReplaceAll(text, name, place)
			}
			name, times = name+strings.Repeat(text, times), 1
		}
		paths = append(paths, name)
	}
	if len(paths) < 1000 {
		t.Fatalf("only %d paths", len(paths))
	}
	return paths
}

// hostileProbes ask for the hostile names, but for those that are not text, and for those of devices and of
// the kernel, which the reference reads without an end.
func hostileProbes(t *testing.T, root string) (probes []*probe) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), secret)
	endless := regexp.MustCompile(`(^|/)(dev|proc|sys)(/|$)`)
	for _, name := range hostilePaths(t, map[string]string{"$ROOT": root, "$OUT": outside, "$DATA": outside}) {
		if utf8.ValidString(name) && len(name) < 60_000 && !endless.MatchString(name) {
			probes = append(probes, pathProbes(root, name)...)
		}
	}
	return probes
}

// hostileTree is a bundle as nobody makes one by accident: ingest refuses such links, the server takes
// them as text.
type hostileTree struct {
	manifest *eboot.Manifest
	contents map[eboot.Digest][]byte
}

var _ api.Source = (*hostileTree)(nil)

func (h *hostileTree) Manifest() *eboot.Manifest { return h.manifest }

// hostileTime is when everything in the tree was last changed.
const hostileTime = 1_600_000_000

func (h *hostileTree) Times() []int64 {
	return slices.Repeat([]int64{hostileTime}, len(h.manifest.Entries))
}

func (h *hostileTree) Blobs(_ context.Context, want func(eboot.Digest) bool, put func(eboot.Digest, int64, io.Reader) error) error {
	for d, content := range h.contents {
		if want(d) {
			if err := put(d, int64(len(content)), bytes.NewReader(content)); err != nil {
				return err
			}
		}
	}
	return nil
}

// newHostileTree has a boot script, a file too big for memory, links that chain, loop and leave, and
// archives that lie. outside and data are directories of the host.
func newHostileTree(t testing.TB, erl testutil.Erlang, outside, data string) *hostileTree {
	t.Helper()
	script, err := os.ReadFile(erl.BootScript())
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	for _, name := range []string{"x/ebin/a.beam", "../evil", "/abs", "x/../../evil", "/etc/passwd", outside + "/secret"} {
		f, err := w.Create(name)
		if err == nil {
			_, err = io.WriteString(f, "in the archive")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	h := &hostileTree{manifest: &eboot.Manifest{}, contents: map[eboot.Digest][]byte{}}
	add := func(e eboot.ManifestEntry) { h.manifest.Entries = append(h.manifest.Entries, e) }
	for _, dir := range []string{"bin", "lib", "deep"} {
		add(eboot.ManifestEntry{Path: dir, Kind: eboot.KindDirectory})
	}
	for name, content := range map[string][]byte{
		"bin/start.boot": script, "lib/a.beam": []byte("a beam"), "lib/big": bytes.Repeat([]byte("big file "), 400_000),
		"lib/x.ez": archive.Bytes(), "lib/evil.ez": archive.Bytes(), "lib/passwd.ez": []byte("no archive"), "ez": []byte("a file"),
	} {
		d := eboot.DigestOf(content)
		h.contents[d] = content
		add(eboot.ManifestEntry{Path: name, Kind: eboot.KindFile, Size: int64(len(content)), Digest: d})
	}
	links := map[string]string{
		"out": "../../../../../../etc", "outabs": "/etc/passwd", "up": "..", "root": "/", "self": ".", "loop": "loop/loop", "data": data,
		"secret": outside + "/secret", "deep/out": "../../../../../../../.." + outside, "dirlink": "lib", "lib/out.ez": outside + "/real.ez", "chain": "chain0", "chain46": "out",
	}
	for i := range 46 {
		links[fmt.Sprintf("chain%d", i)] = fmt.Sprintf("chain%d", i+1)
	}
	for name, target := range links {
		add(eboot.ManifestEntry{Path: name, Kind: eboot.KindSymlink, Target: target})
	}
	h.manifest.Sort()
	return h
}

// told checks what a server said of name: whatever is ok is of the tree, of nobody's and of no inode.
func (h *hostileTree) told(t *testing.T, command, name string, reply any, own map[string]bool) {
	t.Helper()
	text := testutil.Format(reply)
	if strings.Contains(text, secret) {
		t.Fatalf("{%s,%.200q}: the secret", command, name)
	}
	o := outcome{reply: reply}
	switch good := o.good().(type) {
	case nil:
		if o.failure() == "" {
			t.Errorf("{%s,%.200q}: %s", command, name, text)
		}
	case []byte:
		if _, known := h.contents[eboot.DigestOf(good)]; !known && !own[string(good)] {
			t.Errorf("{%s,%.200q}: %d bytes that are not of the bundle: %.80q", command, name, len(good), good)
		}
	case testutil.List:
		for _, entry := range good {
			child, _ := testutil.TextOf(entry)
			if !own["name "+child] {
				t.Errorf("{%s,%.200q}: lists %q", command, name, child)
			}
		}
	case testutil.Tuple:
		for _, field := range []int{infoMajorDevice, infoMinorDevice, infoInode, infoOwner, infoGroup} {
			if len(good) != 14 || good[field] != 0 {
				t.Fatalf("{%s,%.200q}: %s", command, name, text)
			}
		}
	default:
		t.Errorf("{%s,%.200q}: %s", command, name, text)
	}
}

// TestOpens traces a server process from when it has started: real slaves boot from it, and a hostile
// client asks it for thousands of names by every request there is. None of them is ever handed to
// the kernel: it opens blobs by their digests, and files of its own in the data directory.
func TestOpens(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
			t.Fatal("EBOOT_REQUIRE_ERL=1, but there is no strace")
		}
		t.Skip("needs strace, to see what a process opens")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, outside, slaveRoot := filepath.Join(dir, "data"), filepath.Join(dir, "outside"), testutil.BareRoot(t, erl)
	write(t, filepath.Join(outside, "secret"), secret)
	if err := os.Symlink("secret", filepath.Join(outside, "link")); err != nil {
		t.Fatal(err)
	}
	address := takeAddress(t)
	s := startProcessWith(t, address, data, fmt.Sprintf("boot: {bind: [%s], roots: [%s]}", address, slaveRoot))
	publishTree(t, s.Client, erl, eboot.Ref{Name: "otp", Version: "1"}, erl.Root)
	allow(t, s.Client, "127.0.0.0/8")
	tree := newHostileTree(t, erl, outside, data)
	const hostile = "127.0.0.66"
	publish := api.Publish{Ref: eboot.Ref{Name: "hostile", Version: "1"}, ERTS: []string{erl.ERTS}, BootScript: "bin/start.boot", Channel: "hostile", Source: tree}
	if _, err := s.Client.Publish(t.Context(), publish); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: netip.MustParsePrefix(hostile + "/32"), Channel: "hostile"}); err != nil {
		t.Fatal(err)
	}
	paths := hostilePaths(t, map[string]string{"$ROOT": slaveRoot, "$OUT": outside, "$DATA": data})

	trace := startTrace(t, strace, s.cmd.Process.Pid)
	for _, embedded := range []bool{false, true} {
		slave := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{address}, Root: slaveRoot, Embedded: embedded})
		if r := slave.Report(bootDeadline); len(r.Local(slaveRoot)) == 0 && r.Root != slaveRoot {
			t.Errorf("the slave reports %+v", r)
		}
	}
	asked := askHostile(t, erl, tree, address, hostile, slaveRoot, paths)
	opened := trace.stop(t)

	// What a server may name to the kernel once it has started: blobs by their digests, and the three
	// files that it replaces, below other names first; the data directory itself to make that durable.
	own := regexp.MustCompile(`^` + regexp.QuoteMeta(data) + `(/store/blobs(/[0-9a-f]{2}(/[0-9a-f]{64})?)?|/\.?(serving-cache|pins\.json|plans\.json)(\.tmp-\d+)?)?$`)
	blobs := 0
	for _, call := range opened {
		if !own.MatchString(call.path) {
			t.Errorf("the server named %q to the kernel: %s", call.path, call.line)
		}
		if strings.Contains(call.path, "/blobs/") {
			blobs++
		}
	}
	if blobs < 100 { // an interactive boot opens more
		t.Errorf("only %d opens of blobs were seen: was anything traced?", blobs)
	}
	t.Logf("%d requests for %d names; the server named %d paths to the kernel, %d of them blobs", asked, len(paths), len(opened), blobs)
}

// askHostile asks for all paths from the address hostile, by every request of the protocol and of our
// loader's, and returns how many requests that were.
func askHostile(t *testing.T, erl testutil.Erlang, tree *hostileTree, address, hostile, root string, paths []string) (asked int) {
	t.Helper()
	session := testutil.NewSession(testutil.SessionOptions{Servers: []string{address}, ERTS: erl.ERTS, Local: hostile, Root: root, Silence: 20 * time.Second, OnFile: func(name string, content any) {
		if data, ok := content.([]byte); ok && (tree.contents[eboot.DigestOf(data)] == nil || strings.Contains(string(data), secret)) {
			t.Errorf("fetch %.200q: %d bytes that are not of the bundle", name, len(data))
		}
	}})
	defer session.Close()
	found, err := session.Search(5 * time.Second)
	if err != nil || len(found) != 1 {
		t.Fatalf("search: %+v, %v", found, err)
	}
	if err := session.Connect(found[0]); err != nil {
		t.Fatal(err)
	}
	script, err := session.Script(root + "/bin/start.boot")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.Open("tree"); err != nil {
		t.Fatal(err)
	}
	var part []string
	size := 0
	for i, name := range paths {
		if len(name) < 50_000 { // else the connection is closed, as the requests below see
			part, size = append(part, name), size+len(name)
		}
		if size < 10_000 && i < len(paths)-1 {
			continue
		}
		if err := session.Fetch(part); err != nil {
			t.Fatal(err)
		}
		if _, err := session.ReadFiles(part); err != nil {
			t.Fatalf("fetch %.300q: %v", part, err)
		}
		asked++
		part, size = nil, 0
	}

	// What is the bundle's beside its blobs: its script as it is served, the empty sys.config, members of archives, names.
	own := map[string]bool{string(script): true, "[].\n": true, "in the archive": true, "name sys.config": true, "name x": true, "name ebin": true, "name a.beam": true}
	for _, e := range tree.manifest.Entries {
		own["name "+path.Base(e.Path)] = true
	}
	ask := &asker{t: t, dial: func() (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(hostile)}, Timeout: 10 * time.Second}
		return dialer.Dial("tcp4", netip.AddrPortFrom(found[0].From.Addr(), found[0].Port).String())
	}}
	for _, name := range paths {
		for _, form := range nameForms(name) {
			for _, command := range []string{"get", "list_dir", "read_file_info", "read_link_info"} {
				request := testutil.Encode(testutil.Tuple{testutil.Atom(command), form})
				reply, err := ask.raw(request)
				asked++
				if len(request) > 64<<10 && closedByPeer(err) {
					continue // as the protocol has it
				}
				if err != nil {
					t.Fatalf("{%s,%.200q}: %v", command, name, err)
				}
				if failure, ok := reply.(testutil.Tuple); ok && len(failure) == 2 && failure[0] == testutil.Atom("error") {
					continue // a name that is no text
				}
				tree.told(t, command, name, reply, own)
			}
		}
	}
	if ask.client != nil {
		ask.client.Close()
	}
	return asked
}

// nameForms are the ways in which a client can say name: its bytes as characters, its characters when
// there are others than bytes, and a binary.
func nameForms(name string) []any {
	var bytesOf testutil.List
	for i := range len(name) {
		bytesOf = append(bytesOf, int(name[i]))
	}
	forms := []any{bytesOf, []byte(name)}
	if strings.ContainsFunc(name, func(r rune) bool { return r >= 0x80 && r != 0xfffd }) {
		forms = append(forms, testutil.Text(name))
	}
	return forms
}

// raw sends one request and returns the whole reply; a new connection is made when the server has closed.
func (a *asker) raw(request []byte) (any, error) {
	if a.client == nil {
		conn, err := a.dial()
		if err != nil {
			return nil, err
		}
		a.client = testutil.NewFileClient(a.t, conn)
	}
	reply, err := a.client.Exchange(request)
	if err != nil {
		a.client.Close()
		a.client = nil
	}
	return reply, err
}

// tracer is a strace of a process that runs.
type tracer struct {
	cmd    *exec.Cmd
	file   string
	errors *bytes.Buffer
}

// startTrace traces every system call with a file's name in it, of all threads of the process and of
// those that it starts.
func startTrace(t *testing.T, strace string, pid int) *tracer {
	t.Helper()
	tr := &tracer{file: filepath.Join(t.TempDir(), "trace"), errors: &bytes.Buffer{}}
	tr.cmd = exec.Command(strace, "-f", "-y", "-qq", "-e", "trace=%file,openat2", "-e", "signal=none", "-o", tr.file, "-p", strconv.Itoa(pid))
	tr.cmd.Stderr = tr.errors
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.cmd.Process.Kill(); _ = tr.cmd.Wait() })
	refused := false
	testutil.Poll(t, 20*time.Second, "strace is to trace all threads", func() bool {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
			if err == nil && bytes.Contains(status, []byte("\nTracerPid:\t0\n")) {
				refused = tr.cmd.Process.Signal(syscall.Signal(0)) != nil
				return refused
			}
		}
		return true
	})
	if refused {
		t.Skipf("strace may not trace: %s", tr.errors)
	}
	return tr
}

// call is one system call that names a file.
type call struct{ path, line string }

var (
	namedFile = regexp.MustCompile(`^\d+ +(\w+)\((?:(\w+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"`)
	noFile    = regexp.MustCompile(`^\d+ +(<\.\.\.|\+\+\+|---|exit)|^\d+ +\w+\((\w+<[^>]*>, )?NULL`)
)

// stop ends the trace and returns what was named, as absolute paths. A call that it cannot read is an
// error: nothing may hide.
func (tr *tracer) stop(t *testing.T) (calls []call) {
	t.Helper()
	if err := tr.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := tr.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	data, err := os.ReadFile(tr.file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		m := namedFile.FindStringSubmatch(line)
		if m == nil {
			if !noFile.MatchString(line) {
				t.Errorf("a call that cannot be read: %s", line)
			}
			continue
		}
		name, err := strconv.Unquote(`"` + m[4] + `"`)
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		if name == "" {
			name = m[3]
		} else if !filepath.IsAbs(name) {
			name = filepath.Join(m[3], name)
		}
		calls = append(calls, call{name, line})
	}
	return calls
}
