package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot/internal/testutil"
)

// The cases of OTP's own suites for the boot server and for the inet loader, with
// eboot in the server's place and unmodified nodes as slaves.
//
//	erl_boot_server_SUITE
//	  start, start_link      TestSuiteStart: one server per address, the second is told why
//	  stop                   every test: TestMain looks for goroutines that are left
//	  add, delete            TestSuiteAddDelete
//	  responses              TestSuiteResponses
//	erl_prim_loader_SUITE
//	  get_path, set_path     TestSuitePath
//	  get_file               TestSuiteGetFile
//	  normalize_and_backslash TestSuiteBackslash
//	  inet_existing          TestSuiteInetExisting, in both modes
//	  inet_coming_up         TestSuiteInetComingUp
//	  inet_disconnects       TestSuiteInetDisconnects; the suite kills the server but not the
//	                         connection that it serves, here the connection dies too
//	  multiple_slaves        TestSuiteMultipleSlaves
//	  file_requests          TestSuiteFileRequests
//	  remote_archive         TestSuiteRemoteArchive
//	  virtual_dir_in_archive TestSuiteVirtualDirInArchive; in the suite with a local archive
//	  local_archive, primary_archive  not here: both are about the efile loader, and
//	                         set_primary_archive ends the inet loader of every release

// slaveRoot is the ROOTDIR of the slaves of these tests. It does not exist on this
// machine: whatever a slave finds there has come over the wire.
const slaveRoot = "/nonexistent/erlang"

// bootDeadline is how long a node may take that finds a server at once. It takes less
// than a second alone; a machine that builds beside it is slower.
const bootDeadline = 40 * time.Second

// smallTree is an installation with what a node needs to come up: a few megabytes
// instead of a hundred. It is made of symlinks, which the publish follows.
func smallTree(t testing.TB, erl testutil.Erlang) string {
	t.Helper()
	root := t.TempDir()
	boot, err := os.ReadFile(erl.BootScript())
	if err != nil {
		t.Fatal(err)
	}
	write(t, root+"/bin/start.boot", string(boot))
	for _, app := range []string{"kernel", "stdlib"} {
		found, err := filepath.Glob(filepath.Join(erl.Root, "lib", app+"-*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("application %s of %s: %v, %v", app, erl.Root, found, err)
		}
		// Only ebin: Debian's source directories may hold anything.
		dir := filepath.Join(root, mustDir(t, root, filepath.Join("lib", filepath.Base(found[0]))))
		link(t, filepath.Join(found[0], "ebin"), filepath.Join(dir, "ebin"))
	}
	return root
}

func startSuiteServer(t testing.TB, erl testutil.Erlang) *server {
	t.Helper()
	return startEboot(t, erl, smallTree(t, erl), []string{slaveRoot})
}

// runNode boots a node from the servers at hosts, lets it evaluate eval and checks
// that this went well: a failed match ends the node with status 1.
func runNode(t testing.TB, erl testutil.Erlang, deadline time.Duration, eval string, hosts ...string) testutil.Exit {
	t.Helper()
	s := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: hosts, Root: slaveRoot, Eval: eval + ", io:format(\"went well~n\"), halt(0)."})
	return checkNode(t, s, deadline)
}

func checkNode(t testing.TB, s *testutil.Slave, deadline time.Duration) testutil.Exit {
	t.Helper()
	exit := s.Wait(deadline)
	if exit.Status != 0 || !strings.Contains(exit.Output, "went well") {
		t.Fatalf("node ended with status %d:\n%s", exit.Status, exit.Output)
	}
	return exit
}

const loaderIsInet = `{ok, [["inet"]]} = init:get_argument(loader)`

func TestSuiteStart(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	_, err := net.ListenPacket("udp4", s.Address+":4368")
	if err == nil {
		t.Fatal("the discovery port of a running server is free")
	}
	second := newAgentAt(t, s.Address)
	if err := second.Run(t.Context()); err == nil {
		t.Error("a second server on the same address runs")
	} else if !strings.Contains(err.Error(), "4368") {
		t.Errorf("second server: %v: does not name the port that is taken", err)
	}
	s.WaitReady(t, erl) // the first one still answers
}

func TestSuiteAddDelete(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startServer(t, serverOptions{Roots: []string{slaveRoot}})
	s.Publish(t, erl, "otp", "1", smallTree(t, erl))
	allowed := func() []string {
		entries, err := s.Client.Whitelist(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var prefixes []string
		for _, e := range entries {
			prefixes = append(prefixes, e.Prefix.String())
		}
		return prefixes
	}
	want := func(prefixes ...string) {
		t.Helper()
		if got := allowed(); !slices.Equal(got, prefixes) {
			t.Errorf("allowed %v, want %v", got, prefixes)
		}
	}
	want()
	s.Allow(t, "10.0.0.1")
	s.Allow(t, "10.0.0.2")
	s.Allow(t, "10.1.0.0/16")
	s.Allow(t, "10.0.0.2") // again
	want("10.0.0.1/32", "10.0.0.2/32", "10.1.0.0/16")
	s.Deny(t, "10.0.0.1")
	want("10.0.0.2/32", "10.1.0.0/16")
	if _, ok := s.discover(t, erl); ok {
		t.Error("an address that is not allowed got an answer")
	}
	s.Allow(t, "127.0.0.1")
	s.WaitReady(t, erl)
	c := testutil.Dial(t, s.FileAddress(t, erl))
	if _, err := c.Request(testutil.Atom("get_cwd")); err != nil {
		t.Fatal(err)
	}
	s.Deny(t, "127.0.0.1")
	// erl_boot_server asks at accept only; here a denied slave loses what it has.
	testutil.Poll(t, time.Second, "connection of a denied slave is to end", func() bool {
		_, err := c.Request(testutil.Atom("get_cwd"))
		return err != nil
	})
	if _, ok := s.discover(t, erl); ok {
		t.Error("a denied address got an answer")
	}
}

func TestSuiteResponses(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startServer(t, serverOptions{Roots: []string{slaveRoot}})
	s.Publish(t, erl, "otp", "1", smallTree(t, erl))
	s.Allow(t, "127.0.0.1")
	s.WaitReady(t, erl)
	ask := func(from, request string) []testutil.Discovered {
		t.Helper()
		conn := testutil.ListenUDP(t, from+":0")
		defer func() { _ = conn.Close() }()
		to, err := net.ResolveUDPAddr("udp4", s.Address+":4368")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteToUDP([]byte(request), to); err != nil {
			t.Fatal(err)
		}
		return testutil.Collect(t, conn, 150*time.Millisecond)
	}
	replies := ask("127.0.0.1", "EBOOTQ"+erl.ERTS)
	if len(replies) != 1 {
		t.Fatalf("%d replies to a good request, want 1", len(replies))
	}
	r := replies[0]
	if r.Priority != 0 || r.ERTS != erl.ERTS || r.From.String() != s.Address+":4368" {
		t.Errorf("reply %+v, want priority 0, version %s, from %s:4368", r, erl.ERTS, s.Address)
	}
	for name, q := range map[string]struct{ from, request string }{
		"junk":                     {"127.0.0.1", "0"},
		"nothing":                  {"127.0.0.1", ""},
		"no version":               {"127.0.0.1", "EBOOTQ"},
		"other version":            {"127.0.0.1", "EBOOTQ1.0"},
		"version and more":         {"127.0.0.1", "EBOOTQ" + erl.ERTS + "\x00"},
		"lower case":               {"127.0.0.1", "ebootq" + erl.ERTS},
		"a reply":                  {"127.0.0.1", string(r.Raw)},
		"very long":                {"127.0.0.1", "EBOOTQ" + strings.Repeat("1", 1400)},
		"stranger":                 {"127.0.0.77", "EBOOTQ" + erl.ERTS},
		"stranger, other version":  {"127.0.0.77", "EBOOTQ1.0"},
		"request in a second line": {"127.0.0.1", "\nEBOOTQ" + erl.ERTS},
	} {
		if replies := ask(q.from, q.request); len(replies) > 0 {
			t.Errorf("%s: %d replies, want silence", name, len(replies))
		}
	}
	// A stranger who found the port by other means is not served.
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}, Timeout: 5 * time.Second}
	conn, err := dialer.Dial("tcp4", s.FileAddress(t, erl))
	if err == nil {
		if got, err := testutil.NewFileClient(t, conn).Request(testutil.Atom("get_cwd")); err == nil {
			t.Errorf("stranger got %s", testutil.Format(got))
		}
	}
}

func TestSuiteInetExisting(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	for _, embedded := range []bool{false, true} {
		node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{s.Address}, Root: slaveRoot, Embedded: embedded})
		r := node.Report(bootDeadline)
		if r.Root != slaveRoot {
			t.Errorf("root of the node is %s, want %s", r.Root, slaveRoot)
		}
		if local := r.Local(slaveRoot); len(local) > 0 {
			t.Errorf("%s: modules from this machine's disk: %v", r.Mode, local)
		}
		for _, dir := range r.Path {
			if _, err := os.Stat(dir); dir != "." && err == nil {
				t.Errorf("%s: directory %s of the code path exists here", r.Mode, dir)
			}
		}
		if _, ok := r.Modules["lists"]; !ok {
			t.Errorf("%s: module lists is not loaded", r.Mode)
		}
		t.Logf("%s: %d modules in %v", r.Mode, len(r.Modules), r.Took)
	}
	runNode(t, erl, bootDeadline, loaderIsInet, s.Address)
	// A host in the list that is not there, and one that refuses, change nothing.
	runNode(t, erl, bootDeadline, loaderIsInet, "127.0.0.30", s.Address)
	runNode(t, erl, bootDeadline, loaderIsInet, s.Address, "127.0.0.30")
}

func TestSuiteInetComingUp(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	address := takeAddress(t)
	node := testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{address}, Root: slaveRoot,
		Eval: loaderIsInet + `, io:format("went well~n"), halt(0).`})
	testutil.Poll(t, 20*time.Second, "node is to have searched in vain", func() bool {
		return strings.Contains(node.Output(), "no server found")
	})
	s := startServer(t, serverOptions{Address: address, Roots: []string{slaveRoot}})
	s.Publish(t, erl, "otp", "1", smallTree(t, erl))
	s.Allow(t, "127.0.0.1")
	// It sleeps for ten seconds after each search, so this takes as long.
	exit := checkNode(t, node, bootDeadline+15*time.Second)
	t.Logf("node came up %v after its start", exit.Took)
}

// disconnectAt is the number of requests after which OTP's suite kills the server.
const disconnectAt = 100

func TestSuiteInetDisconnects(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	// Each subtest has a recorder in front of the server, which dies at a request.
	start := func(t *testing.T, address string, cutAt int) *testutil.Recorder {
		n := 0
		return testutil.StartRecorder(t, testutil.RecorderOptions{
			Address: address, ERTS: erl.ERTS, Dial: s.dial(t, erl),
			Cut: func(testutil.Exchanged) bool { n++; return n == cutAt },
		})
	}
	boot := func(t *testing.T, hosts ...string) *testutil.Slave {
		return testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: hosts, Root: slaveRoot,
			Eval: loaderIsInet + `, io:format("went well~n"), halt(0).`})
	}
	t.Run("another is there", func(t *testing.T) {
		first, second := takeAddress(t), takeAddress(t)
		dying := start(t, first, disconnectAt)
		// The last reply wins, so a host list alone does not say which is taken: the
		// second answers when the first is gone.
		node := boot(t, first, second)
		testutil.Poll(t, bootDeadline, "first server is to die", dying.Severed)
		living := start(t, second, -1)
		exit := checkNode(t, node, bootDeadline+15*time.Second)
		if n := len(living.Exchanges()); n == 0 {
			t.Error("the second server was asked nothing")
		} else {
			t.Logf("%d requests to the first, %d to the second, %v", len(dying.Exchanges()), n, exit.Took)
		}
	})
	t.Run("it comes back", func(t *testing.T) {
		address := takeAddress(t)
		dying := start(t, address, disconnectAt)
		node := boot(t, address)
		testutil.Poll(t, bootDeadline, "server is to die", dying.Severed)
		dying.Close()
		testutil.Poll(t, 20*time.Second, "node is to search in vain", func() bool {
			// What the stock loader says, and what ours does.
			return strings.Contains(node.Output(), "no server found") || strings.Contains(node.Output(), "no server has our bundle")
		})
		start(t, address, -1)
		checkNode(t, node, bootDeadline+15*time.Second)
	})
	t.Run("connection alone is lost, again and again", func(t *testing.T) {
		address := takeAddress(t)
		// Every connection ends after a few requests: each search costs half a second.
		flaky := startFlaky(t, erl, s, address, 60)
		node := boot(t, address)
		checkNode(t, node, bootDeadline)
		if n := flaky.Load(); n < 3 {
			t.Errorf("%d connections, want 3 or more", n)
		}
	})
}

func TestSuiteMultipleSlaves(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	s := startServer(t, serverOptions{Roots: []string{slaveRoot}})
	s.Publish(t, erl, "otp", "1", smallTree(t, erl))
	// The nodes queue up before they are allowed, as in the suite, where there is no server yet.
	nodes := make([]*testutil.Slave, 10)
	for i := range nodes {
		nodes[i] = testutil.StartSlave(t, erl, testutil.SlaveOptions{Hosts: []string{s.Address}, Root: slaveRoot,
			Embedded: i%2 == 1, Eval: loaderIsInet + `, io:format("went well~n"), halt(0).`})
	}
	for i, node := range nodes {
		testutil.Poll(t, bootDeadline, fmt.Sprintf("node %d is to search in vain", i), func() bool {
			return strings.Contains(node.Output(), "no server found")
		})
	}
	s.Allow(t, "127.0.0.1")
	for _, node := range nodes {
		checkNode(t, node, 2*bootDeadline)
	}
}

func TestSuitePath(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	runNode(t, erl, bootDeadline, `
		{ok, Path} = erl_prim_loader:get_path(),
		true = is_list(Path),
		New = Path ++ ["dummy_dir", "/dummy_dir/dummy_dir"],
		ok = erl_prim_loader:set_path(New),
		{ok, New} = erl_prim_loader:get_path(),
		ok = erl_prim_loader:set_path(Path),
		{'EXIT', _} = (catch erl_prim_loader:set_path(not_a_list)),
		{ok, Path} = erl_prim_loader:get_path()`, s.Address)
}

func TestSuiteGetFile(t *testing.T) {
	erl := testutil.RequireErl(t)
	s := startSuiteServer(t, erl)
	runNode(t, erl, bootDeadline, `
		ok = erl_prim_loader:set_path(code:get_path()),
		{ok, Bin, File} = erl_prim_loader:get_file("lists" ++ code:objfile_extension()),
		{module, lists} = code:ensure_loaded(lists),
		{ok, {lists, MD5}} = beam_lib:md5(Bin),
		MD5 = lists:module_info(md5),
		true = is_list(File),
		error = erl_prim_loader:get_file("duuuuuuummmy_file"),
		error = erl_prim_loader:get_file(duuuuuuummmy_file),
		error = erl_prim_loader:get_file({dummy})`, s.Address)
}

func TestSuiteBackslash(t *testing.T) {
	erl := testutil.RequireErl(t)
	tree := smallTree(t, erl)
	write(t, tree+`/a\/file-OTP-11170`, "a file to test OTP-11170")
	s := startEboot(t, erl, tree, []string{slaveRoot})
	runNode(t, erl, bootDeadline, `
		{ok, ["file-OTP-11170"]} = erl_prim_loader:list_dir(code:root_dir() ++ "/a\\"),
		{ok, <<"a file to test OTP-11170">>, _} = erl_prim_loader:get_file(code:root_dir() ++ "/a\\/file-OTP-11170")`, s.Address)
}

func TestSuiteFileRequests(t *testing.T) {
	erl := testutil.RequireErl(t)
	tree := smallTree(t, erl)
	// What the symlink points to must be in the tree: kernel's ebin is followed at publish.
	write(t, tree+"/target", "1234567")
	link(t, "target", tree+"/symlink")
	s := startEboot(t, erl, tree, []string{slaveRoot})
	info, err := os.Stat(tree + "/target")
	if err != nil {
		t.Fatal(err)
	}
	mtime := info.ModTime().UTC()
	entries, err := os.ReadDir(tree)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, fmt.Sprintf("%q", e.Name()))
	}
	runNode(t, erl, bootDeadline, fmt.Sprintf(`
		{ok, Files} = erl_prim_loader:list_dir("."),
		true = [] =:= [%[1]s] -- Files,
		{ok, Files} = erl_prim_loader:list_dir(code:root_dir()),
		Name = code:root_dir() ++ "/target",
		{ok, Info} = erl_prim_loader:read_file_info(Name),
		{ok, Info} = erl_prim_loader:read_file_info("target"),
		7 = element(2, Info),
		regular = element(3, Info),
		{{%[2]d,%[3]d,%[4]d},{%[5]d,%[6]d,%[7]d}} = element(6, Info),
		{ok, Info} = erl_prim_loader:read_file_info(code:root_dir() ++ "/symlink"),
		{ok, LinkInfo} = erl_prim_loader:read_link_info(code:root_dir() ++ "/symlink"),
		symlink = element(3, LinkInfo),
		{ok, Which} = erl_prim_loader:read_file_info(code:which(lists)),
		regular = element(3, Which),
		Root = code:root_dir(),
		{ok, Root} = erl_prim_loader:get_cwd(),
		error = erl_prim_loader:get_cwd("C:"),
		error = erl_prim_loader:list_dir("no_such_directory")`,
		strings.Join(names, ","), mtime.Year(), mtime.Month(), mtime.Day(), mtime.Hour(), mtime.Minute(), mtime.Second()), s.Address)
}

// archiveChecks is test_archive/4 of the suite: Top is the archive, App the
// directory in it, Beam a file in its ebin.
const archiveChecks = `
	{ok, TopFiles} = erl_prim_loader:list_dir(Top),
	true = lists:member(App, TopFiles),
	{ok, AppFiles} = erl_prim_loader:list_dir(Top ++ "/" ++ App),
	true = lists:member("ebin", AppFiles),
	Ebin = Top ++ "/" ++ App ++ "/ebin",
	{ok, EbinFiles} = erl_prim_loader:list_dir(Ebin),
	true = lists:member(Beam, EbinFiles),
	error = erl_prim_loader:list_dir(Top ++ "/no_such_file"),
	error = erl_prim_loader:list_dir(Top ++ "/ebin/no_such_file"),
	{ok, TopInfo} = erl_prim_loader:read_file_info(Top),
	directory = element(3, TopInfo),
	{ok, EbinInfo} = erl_prim_loader:read_file_info(Ebin),
	directory = element(3, EbinInfo),
	{ok, BeamInfo} = erl_prim_loader:read_file_info(Ebin ++ "/" ++ Beam),
	regular = element(3, BeamInfo),
	error = erl_prim_loader:read_file_info(Top ++ "/no_such_file"),
	error = erl_prim_loader:read_file_info(Top ++ "/ebin/no_such_file"),
	{ok, Bin, _} = erl_prim_loader:get_file(Ebin ++ "/" ++ Beam),
	true = byte_size(Bin) =:= element(2, BeamInfo),
	error = erl_prim_loader:get_file(Top ++ "/no_such_file"),
	error = erl_prim_loader:get_file(Top ++ "/ebin/no_such_file"),
	ok = case erl_prim_loader:get_file(Ebin) of error -> ok end`

func TestSuiteRemoteArchive(t *testing.T) {
	erl := testutil.RequireErl(t)
	tree := smallTree(t, erl)
	kernel, err := filepath.Glob(filepath.Join(erl.Root, "lib", "kernel-*"))
	if err != nil || len(kernel) != 1 {
		t.Fatalf("kernel: %v, %v", kernel, err)
	}
	app := filepath.Base(kernel[0])
	zipCreate(t, erl, tree, fmt.Sprintf(`{ok, _} = zip:create("%[1]s-remote.ez", ["%[1]s"], [{cwd, "lib"}, {compress, []}])`, app))
	s := startEboot(t, erl, tree, []string{slaveRoot})
	runNode(t, erl, bootDeadline, fmt.Sprintf(`
		Top = code:root_dir() ++ "/%[1]s-remote.ez", App = "%[1]s", Beam = "inet.beam",`, app)+archiveChecks, s.Address)
}

func TestSuiteVirtualDirInArchive(t *testing.T) {
	erl := testutil.RequireErl(t)
	tree := smallTree(t, erl)
	// Files alone: the directories above them are not in the archive.
	zipCreate(t, erl, tree, `{ok, _} = zip:create("app-1.ez", [{"app-1/ebin/m.beam", <<"beam">>}], [{compress, []}])`)
	s := startEboot(t, erl, tree, []string{slaveRoot})
	runNode(t, erl, bootDeadline, `
		Top = code:root_dir() ++ "/app-1.ez", App = "app-1", Beam = "m.beam",`+archiveChecks+`,
		{ok, ["app-1"]} = erl_prim_loader:list_dir(Top),
		{ok, ["ebin"]} = erl_prim_loader:list_dir(Top ++ "/app-1"),
		{ok, ["m.beam"]} = erl_prim_loader:list_dir(Ebin)`, s.Address)
}

// zipCreate evaluates an expression with OTP's own zip module, in dir.
func zipCreate(t testing.TB, erl testutil.Erlang, dir, expression string) {
	t.Helper()
	// zip keeps local times; a fixed zone (of Run) makes them comparable.
	erl.Run(t, dir, "+fnu", "-noinput", "-eval", strings.Join(strings.Fields(expression), " ")+", halt(0).")
}
