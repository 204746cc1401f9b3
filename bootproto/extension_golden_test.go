package bootproto

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// golden is a term of the extension as it stands in Erlang source, and its frame without
// the header, as OTP 26 and later write it.
type golden struct{ term, hex string }

func (g golden) frame() []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(g.hex), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// Each was written by hand; TestGoldenErl has Erlang agree.
var (
	goldenOpen = golden{
		`{eboot_open,1,<<"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef">>,[{bundle,<<"a@1">>},{script,<<"a.boot">>},
			{mode,embedded},{root,<<"/opt">>},{age,1234},{boot,16#a1b2c3d4e5f6},{want,[tree,plan]},{pack,true},{can,[restart]},{moon,[{1,"x"}]}]}`,
		`83 68 04 77 0a 65626f6f745f6f70656e 61 01
		 6d 00000040 30313233343536373839616263646566 30313233343536373839616263646566 30313233343536373839616263646566 30313233343536373839616263646566
		 6c 0000000a
		 68 02 77 06 62756e646c65 6d 00000003 614031
		 68 02 77 06 736372697074 6d 00000006 612e626f6f74
		 68 02 77 04 6d6f6465 77 08 656d626564646564
		 68 02 77 04 726f6f74 6d 00000004 2f6f7074
		 68 02 77 03 616765 62 000004d2
		 68 02 77 04 626f6f74 6e 06 00 f6e5d4c3b2a1
		 68 02 77 04 77616e74 6c 00000002 77 04 74726565 77 04 706c616e 6a
		 68 02 77 04 7061636b 77 04 74727565
		 68 02 77 03 63616e 6c 00000001 77 07 72657374617274 6a
		 68 02 77 04 6d6f6f6e 6c 00000001 68 02 61 01 6b 0001 78 6a
		 6a`,
	}
	goldenFetch = golden{
		`{eboot_fetch,[<<"a">>,<<"b/c.beam">>,<<"none">>]}`,
		`83 68 02 77 0b 65626f6f745f6665746368 6c 00000003 6d 00000001 61 6d 00000008 622f632e6265616d 6d 00000004 6e6f6e65 6a`,
	}
	goldenReport = golden{
		`{eboot_report,[{switches,1},{local,300},{phase,preloaded,80}]}`,
		`83 68 02 77 0c 65626f6f745f7265706f7274 6c 00000003
		 68 02 77 08 7377697463686573 61 01
		 68 02 77 05 6c6f63616c 62 0000012c
		 68 03 77 05 7068617365 77 09 7072656c6f61646564 61 50
		 6a`,
	}
	goldenOpened = golden{
		`{eboot_open,{ok,[{bundle,<<"a@1">>},{control,on},{cwd,<<"/opt">>},{roots,[<<"/opt">>]},{tree,<<131,106>>},{plan,[<<"a">>]}]}}`,
		`83 68 02 77 0a 65626f6f745f6f70656e 68 02 77 02 6f6b 6c 00000006
		 68 02 77 06 62756e646c65 6d 00000003 614031
		 68 02 77 07 636f6e74726f6c 77 02 6f6e
		 68 02 77 03 637764 6d 00000004 2f6f7074
		 68 02 77 05 726f6f7473 6c 00000001 6d 00000004 2f6f7074 6a
		 68 02 77 04 74726565 6d 00000002 836a
		 68 02 77 04 706c616e 6c 00000001 6d 00000001 61 6a
		 6a`,
	}
	goldenBare = golden{
		`{eboot_open,{ok,[{bundle,<<>>},{control,off},{cwd,<<>>},{roots,[]}]}}`,
		`83 68 02 77 0a 65626f6f745f6f70656e 68 02 77 02 6f6b 6c 00000004
		 68 02 77 06 62756e646c65 6d 00000000
		 68 02 77 07 636f6e74726f6c 77 03 6f6666
		 68 02 77 03 637764 6d 00000000
		 68 02 77 05 726f6f7473 6a
		 6a`,
	}
	goldenRefused = golden{`{eboot_open,{error,denied}}`, `83 68 02 77 0a 65626f6f745f6f70656e 68 02 77 05 6572726f72 77 06 64656e696564`}
	goldenFile    = golden{`{eboot_file,<<"a">>,<<"boot">>}`, `83 68 03 77 0a 65626f6f745f66696c65 6d 00000001 61 6d 00000004 626f6f74`}
	goldenPacked  = golden{
		`{eboot_file,<<"b/c.beam">>,{packed,<<131,106>>}}`,
		`83 68 03 77 0a 65626f6f745f66696c65 6d 00000008 622f632e6265616d 68 02 77 06 7061636b6564 6d 00000002 836a`,
	}
	goldenMissing = golden{
		`{eboot_file,<<"none">>,{error,enoent}}`,
		`83 68 03 77 0a 65626f6f745f66696c65 6d 00000004 6e6f6e65 68 02 77 05 6572726f72 77 06 656e6f656e74`,
	}
	goldenRestart = golden{`{eboot_restart,16#a1b2c3d4e5f6}`, `83 68 02 77 0d 65626f6f745f72657374617274 6e 06 00 f6e5d4c3b2a1`}
	goldenDone    = golden{`{eboot_done,3}`, `83 68 02 77 0a 65626f6f745f646f6e65 61 03`}
	goldenDoneAll = golden{`{eboot_done,2048}`, `83 68 02 77 0a 65626f6f745f646f6e65 62 00000800`}
)

func TestGoldenRequests(t *testing.T) {
	want := Open{
		Digest: testDigest, Bundle: "a@1", Script: "a.boot", Mode: "embedded", Root: "/opt",
		Age: 1234 * time.Millisecond, Boot: 0xa1b2c3d4e5f6, Tree: true, Plan: true, Pack: true, CanRestart: true,
	}
	checkRequests(t, goldenOpen.frame(), goldenFetch.frame(), goldenReport.frame(), want)
}

func checkRequests(t *testing.T, open, fetch, report []byte, want Open) {
	t.Helper()
	if o, ok := parseOpen(open); !ok || o != want || extensionOf(open) != atomOpen {
		t.Errorf("open: %+v, %v", o, ok)
	}
	wanted, ok := parseFetch(fetch)
	var paths []string
	for path := range wanted.all {
		paths = append(paths, string(path))
	}
	if !ok || !reflect.DeepEqual(paths, []string{"a", "b/c.beam", "none"}) || extensionOf(fetch) != atomFetch {
		t.Errorf("fetch: %q, %v", paths, ok)
	}
	r, ok := parseReport(report)
	if !ok || !reflect.DeepEqual(r, Report{[]Phase{{"preloaded", 80 * time.Millisecond}}, 1, 300}) || extensionOf(report) != atomReport {
		t.Errorf("report: %+v, %v", r, ok)
	}
}

func TestGoldenReplies(t *testing.T) {
	all := Open{Tree: true, Plan: true}
	o := Opened{Bundle: "a@1", Cwd: "/opt", Roots: []string{"/opt"}, Control: true, Tree: []byte{131, 106}, Plan: []string{"a"}}
	opened := append(appendOpened(nil, all, o), o.Tree...)
	for _, c := range []struct {
		golden golden
		got    []byte
	}{
		{goldenOpened, endFrame(appendPlan(opened, all, o), 0)},
		{goldenBare, endFrame(appendPlan(appendOpened(nil, Open{}, Opened{Tree: o.Tree, Plan: o.Plan}), Open{}, o), 0)},
		{goldenBare, endFrame(appendPlan(appendOpened(nil, Open{Tree: true}, Opened{}), Open{}, o), 0)},
		{goldenRefused, appendOpenError(nil, "denied")},
		{goldenFile, append(appendFile(nil, []byte("a"), false, 4), "boot"...)},
		{goldenPacked, append(appendFile(nil, []byte("b/c.beam"), true, 2), 131, 106)},
		{goldenMissing, appendFileError(nil, []byte("none"), "enoent")},
		{goldenRestart, appendRestart(nil, 0xa1b2c3d4e5f6)},
		{goldenDone, appendDone(nil, 3)},
		{goldenDoneAll, appendDone(nil, MaxFetch)},
	} {
		if want := packet(c.golden.frame()); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got % x\nwant % x", c.golden.term, c.got, want)
		}
	}
}

// TestGoldenServed has a server answer the golden requests with the golden replies.
func TestGoldenServed(t *testing.T) {
	files := newExtendedTree()
	files.opened = Opened{Bundle: "a@1", Cwd: "/opt", Roots: []string{"/opt"}, Control: true, Tree: []byte{131, 106}, Plan: []string{"a"}}
	files.fetch = func(name string, pack bool) (Content, error) {
		switch {
		case name == "a":
			return Content{Data: []byte("boot")}, nil
		case name == "b/c.beam" && pack:
			return Content{Data: []byte{131, 106}, Packed: true}, nil
		}
		return Content{}, syscall.ENOENT
	}
	_, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	for _, g := range []golden{goldenOpen, goldenReport, goldenFetch} {
		send(t, conn, packet(g.frame()))
	}
	oneDone := appendDone(nil, 1)[headerSize:]
	for _, want := range [][]byte{
		goldenOpened.frame(), goldenFile.frame(), oneDone, goldenFile.frame(), goldenPacked.frame(), goldenMissing.frame(), goldenDone.frame(),
	} {
		if got, err := readPacket(conn); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got % x, %v\nwant % x", got, err, want)
		}
	}
}

// TestGoldenErl compares the golden frames with those of Erlang, and reads requests as
// OTP 25 and older write them.
func TestGoldenErl(t *testing.T) {
	needErl(t)
	all := []golden{
		goldenOpen, goldenFetch, goldenReport, goldenOpened, goldenBare, goldenRefused, goldenFile, goldenPacked, goldenMissing, goldenDone, goldenDoneAll,
		goldenRestart,
	}
	var terms []string
	for _, g := range all {
		terms = append(terms, strings.Join(strings.Fields(g.term), ""))
	}
	out, err := exec.Command("erl", "-noshell", "-eval", fmt.Sprintf(
		`[io:format("~s ~s~n", [[io_lib:format("~2.16.0b", [B]) || <<B>> <= term_to_binary(T, [{minor_version, V}])] || V <- [2, 1]]) || T <- [%s]], halt().`,
		strings.Join(terms, ",\n"))).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(all) {
		t.Fatalf("%d lines: %s", len(lines), out)
	}
	var old [][]byte
	for i, line := range lines {
		fields := strings.Fields(line)
		if want := hex.EncodeToString(all[i].frame()); len(fields) != 2 || fields[0] != want {
			t.Errorf("%s:\nErlang writes %s\nwant          %s", all[i].term, fields, want)
		}
		old = append(old, golden{hex: fields[1]}.frame())
	}
	want, _ := parseOpen(goldenOpen.frame())
	checkRequests(t, old[0], old[1], old[2], want)
}
