package bootproto

import (
	"bytes"
	"errors"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"eboot/bootproto/etf"
)

const openedText = `{eboot_open,{ok,[{bundle,<<"otp@25">>},{control,off},{cwd,<<"/opt/erlang">>},{roots,[<<"/opt/erlang">>,<<"/usr/lib/erlang">>]}`

func TestExtension(t *testing.T) {
	files := newExtendedTree()
	s, addr := startFiles(t, FileServerOptions{Host: files, Logger: testLogger(t)})
	conn := dial(t, addr)

	got := exchange(t, conn, askOpen(false, "tree", "plan"))
	if want := openedText + `,{tree,<<"\x{83}j">>},{plan,[<<"bin/start.boot">>,<<"nothing">>]}]}}`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	expectReplies(t, conn, `{eboot_file,<<"bin/start.boot">>,<<"boot">>}`, `{eboot_file,<<"nothing">>,{error,enoent}}`, `{eboot_done,2}`)

	send(t, conn, askFetch("lib/é", "bin/empty", "bin", "lib/\xff", "a\x00b", "lib/big"))
	expectReplies(t, conn,
		`{eboot_file,<<"lib/\x{c3}\x{a9}">>,<<"accent">>}`, `{eboot_file,<<"bin/empty">>,<<"">>}`, `{eboot_file,<<"bin">>,{error,eisdir}}`,
		`{eboot_file,<<"lib/\x{ff}">>,{error,badarg}}`, `{eboot_file,<<"a\x{0}b">>,{error,badarg}}`,
		`{eboot_file,<<"lib/big">>,<<"`+strings.Repeat("big.", 50)+`"...>>}`, `{eboot_done,6}`)
	send(t, conn, askFetch())
	expectReplies(t, conn, `{eboot_done,0}`)

	send(t, conn, askReport("started", 1234))
	send(t, conn, packet(beginTerm(2, atomReport))) // no term: ignored, as what is malformed
	send(t, conn, packet(etf.AppendAtom(beginTerm(2, atomReport), "x")))
	if got := exchange(t, conn, ask("get", "/bin/start.boot")); got != `{get,{ok,<<"boot">>}}` {
		t.Errorf("a stock request on an opened connection: %s", got)
	}
	if want := []Report{{Phases: []Phase{{"started", 1234 * time.Millisecond}}}}; !reflect.DeepEqual(files.reported(), want) {
		t.Errorf("reported %v, want %v", files.reported(), want)
	}
	if got := exchange(t, conn, askOpen(false)); got != openedText+`]}}` {
		t.Errorf("opened again: %s", got)
	}
	_ = conn.Close()
	eventually(t, "the connection has ended", func() bool { return s.Stats().Connections == 0 })
	stats := s.Stats()
	if stats.Opens != 2 || stats.Fetched != 4 || stats.Malformed != 2 || stats.Requests != 8 || stats.Errors != 0 {
		t.Errorf("stats: %+v", stats)
	}
	files.tree.mu.Lock()
	defer files.tree.mu.Unlock()
	if uint64(files.tree.sent) != stats.BytesSent {
		t.Errorf("%d bytes sent, the session was told of %d", stats.BytesSent, files.tree.sent)
	}
}

// TestExtensionUnknown: a session that is not Extended knows nothing of it.
func TestExtensionUnknown(t *testing.T) {
	_, addr := startFiles(t, FileServerOptions{Host: newTree()})
	conn := dial(t, addr)
	for _, request := range [][]byte{askOpen(false, "plan"), askFetch("a"), askReport("started", 1)} {
		if got := exchange(t, conn, request); got != `{error,unknown_command}` {
			t.Error(got)
		}
	}
	if got := exchange(t, conn, packet(beginTerm(2, atomReport))); got != `{error,badarg}` {
		t.Error(got)
	}
}

func TestOpenRefused(t *testing.T) {
	files := newExtendedTree()
	var refusal atomic.Pointer[error]
	files.refuse = func(Open) error { return *refusal.Load() }
	asked := func() int {
		files.mu.Lock()
		defer files.mu.Unlock()
		return len(files.opens)
	}
	s, addr := startFiles(t, FileServerOptions{Host: files})
	conn := dial(t, addr)
	for _, known := range openReasons {
		err := errors.Join(errors.New("open"), known.err)
		refusal.Store(&err)
		if got, want := exchange(t, conn, askOpen(false)), `{eboot_open,{error,`+known.reason+`}}`; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	before := asked()
	for _, request := range [][]byte{
		packet(beginTerm(4, atomOpen)),
		packet(etf.AppendNil(beginTerm(2, atomOpen))),
		packet(etf.AppendNil(appendText(etf.AppendInteger(beginTerm(4, atomOpen), 2), testDigest))), // another version
	} {
		if got := exchange(t, conn, request); got != `{eboot_open,{error,badarg}}` {
			t.Errorf("% x: %s", request, got)
		}
	}
	if asked() != before {
		t.Error("the session was asked to open by a malformed request")
	}
	if stats := s.Stats(); stats.Opens != 0 || stats.Errors != 6 || stats.Malformed != 3 {
		t.Errorf("stats: %+v", stats)
	}
	send(t, conn, askReport("started", 1)) // not opened: ignored
	send(t, conn, askFetch("bin/empty"))   // not opened: the end
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v; want the end", rest, err)
	}
	if len(files.reported()) != 0 {
		t.Error("a report of a slave that opened no session")
	}

	refusal.Store(&errNotNow)
	conn = dial(t, addr)
	send(t, conn, askOpen(false))
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v; want the end", rest, err)
	}
	eventually(t, "the sessions are closed with their reasons", func() bool {
		ended := files.ended()
		return len(ended) == 2 && errors.Is(ended[0], errFetch) && errors.Is(ended[1], errNotNow)
	})
}

func TestMalformedFetchCloses(t *testing.T) {
	tooMany := make([]string, MaxFetch+1)
	for what, request := range map[string][]byte{
		"no term":      packet(beginTerm(2, atomFetch)),
		"no list":      packet(etf.AppendAtom(beginTerm(2, atomFetch), "a")),
		"an atom":      packet(appendAtoms(beginTerm(2, atomFetch), []string{"a"})),
		"a string":     packet(etf.AppendName(beginTerm(2, atomFetch), "abc")),
		"too many":     packet(appendTexts(beginTerm(2, atomFetch), tooMany)),
		"improper":     packet(etf.AppendAtom(appendText(etf.AppendList(beginTerm(2, atomFetch), 1), "bin/empty"), "a")),
		"three values": packet(etf.AppendNil(etf.AppendNil(beginTerm(3, atomFetch)))),
	} {
		t.Run(what, func(t *testing.T) {
			s, addr := startFiles(t, FileServerOptions{Host: newExtendedTree()})
			conn := dial(t, addr)
			opensOn(t, conn)
			send(t, conn, request)
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("read %q, %v; want the end", rest, err)
			}
			if stats := s.Stats(); stats.Malformed != 1 {
				t.Errorf("stats: %+v", stats)
			}
		})
	}
}

// option is {eboot_open,1,Digest,[{Key, Value}]}, Value as it is encoded.
func option(key string, value []byte) []byte {
	return etf.AppendNil(append(appendKey(options(1), key), value...))
}

// options is {eboot_open,1,Digest,Options} up to the first of n options.
func options(n int) []byte {
	return etf.AppendList(appendText(etf.AppendInteger(beginTerm(4, atomOpen), 1), testDigest), n)
}

func TestParseOpen(t *testing.T) {
	for _, c := range []struct {
		what  string
		frame []byte
		want  Open // nothing: it is refused. Digest and Mode as they are usually
	}{
		{"bundle", option("bundle", appendText(nil, "otp@25")), Open{Bundle: "otp@25"}},
		{"script", option("script", appendText(nil, "a.boot")), Open{Script: "a.boot"}},
		{"root", option("root", appendText(nil, "/a\xe9b")), Open{Root: "/a\ufffdb"}},
		{"embedded", option("mode", etf.AppendAtom(nil, "embedded")), Open{Mode: "embedded"}},
		{"age", option("age", etf.AppendInteger(nil, 1<<40)), Open{Age: 1 << 40 * time.Millisecond}},
		{"boot", option("boot", etf.AppendInteger(nil, 1<<48-1)), Open{Boot: 1<<48 - 1}},
		{"pack", option("pack", etf.AppendAtom(nil, "true")), Open{Pack: true}},
		{"can", option("can", appendAtoms(nil, []string{"fly", "restart"})), Open{CanRestart: true}},
		{"no pack", option("pack", etf.AppendAtom(nil, "false")), Open{Mode: "interactive"}},
		{"want", option("want", appendAtoms(nil, []string{"plan", "moon", "tree"})), Open{Plan: true, Tree: true}},
		{"longest", option("root", appendText(nil, strings.Repeat("x", maxText))), Open{Root: strings.Repeat("x", maxText)}},
		{"unknown key", option("moon", appendTexts(nil, []string{"a", "b"})), Open{Mode: "interactive"}},
		{"unknown key, a map", option("moon", append(etf.AppendAtom([]byte{116, 0, 0, 0, 1}, "a"), 106)), Open{Mode: "interactive"}},
		{"unknown key, a float", option("moon", []byte{70, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0}), Open{Mode: "interactive"}},
		{"unknown key, deep", option("moon", append([]byte(strings.Repeat("h\x01", 1000)), 106)), Open{Mode: "interactive"}},
		{"unknown items", slices.Concat(options(5),
			[]byte{106, 116, 0, 0, 0, 0}, // [] and #{}
			etf.AppendAtom(nil, "tree"), append(etf.AppendAtom(etf.AppendTuple(nil, 3), "root"), 106, 106),
			etf.AppendAtom(appendKey(nil, "mode"), "embedded"), []byte{106}), Open{Mode: "embedded"}},

		{what: "text too long", frame: option("root", appendText(nil, strings.Repeat("x", maxText+1)))},
		{what: "text of characters", frame: option("root", etf.AppendName(nil, "abc"))},
		{what: "mode unknown", frame: option("mode", etf.AppendAtom(nil, "minimal"))},
		{what: "mode as text", frame: option("mode", appendText(nil, "embedded"))},
		{what: "age negative", frame: option("age", etf.AppendInteger(nil, -1))},
		{what: "age too long", frame: option("age", etf.AppendInteger(nil, 1<<44))},
		{what: "age a big number", frame: option("age", etf.AppendInteger(nil, math.MaxInt64))},
		{what: "boot too long", frame: option("boot", etf.AppendInteger(nil, 1<<48))},
		{what: "pack a number", frame: option("pack", etf.AppendInteger(nil, 1))},
		{what: "want of texts", frame: option("want", appendTexts(nil, []string{"tree"}))},
		{what: "want too much", frame: option("want", appendAtoms(nil, make([]string, maxItems+1)))},
		{what: "unknown key cut short", frame: option("moon", []byte{104, 2, 106})},
		{what: "unknown key that is no term", frame: option("moon", []byte{1})},
		{what: "known after unknown", frame: slices.Concat(options(2), appendKey(nil, "moon"), []byte{116, 0, 0, 0, 0}, etf.AppendInteger(appendKey(nil, "pack"), 1), []byte{106})},
		{what: "no options", frame: etf.AppendAtom(appendText(etf.AppendInteger(beginTerm(4, atomOpen), 1), testDigest), "x")},
		{what: "digest an atom", frame: etf.AppendNil(etf.AppendAtom(etf.AppendInteger(beginTerm(4, atomOpen), 1), "x"))},
		{what: "too many options", frame: appendAtoms(appendText(etf.AppendInteger(beginTerm(4, atomOpen), 1), testDigest), make([]string, maxItems+1))},
	} {
		got, ok := parseOpen(c.frame)
		if ok != (c.want != Open{}) {
			t.Errorf("%s: accepted %v", c.what, ok)
			continue
		}
		c.want.Digest = testDigest
		if c.want.Mode == "" {
			c.want.Mode = "interactive"
		}
		if ok && got != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
	}
}

func TestParseReport(t *testing.T) {
	phase := func(dst []byte, name string, ms int64) []byte {
		return etf.AppendInteger(etf.AppendAtom(etf.AppendAtom(etf.AppendTuple(dst, 3), "phase"), name), ms)
	}
	list := func(n int) []byte { return etf.AppendList(beginTerm(2, atomReport), n) }
	whole := phase(phase(list(5), "preloaded", 0), "é", 7)
	whole = etf.AppendInteger(appendKey(whole, "switches"), 3)
	whole = etf.AppendInteger(appendKey(whole, "local"), 1<<40)
	whole = etf.AppendNil(etf.AppendAtom(etf.AppendTuple(whole, 1), "moon"))
	want := Report{Phases: []Phase{{"preloaded", 0}, {"é", 7 * time.Millisecond}}, Switches: 3, Local: 1 << 40}
	if got, ok := parseReport(whole); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, ok, want)
	}
	latin := append(etf.AppendAtom(etf.AppendTuple(list(1), 3), "phase"), 115, 1, 0xe9, 97, 1, 106)
	if got, ok := parseReport(latin); !ok || got.Phases[0].Name != "é" {
		t.Errorf("an atom in Latin-1: %+v, %v", got, ok)
	}
	if got, ok := parseReport(etf.AppendNil(beginTerm(2, atomReport))); !ok || !reflect.DeepEqual(got, Report{}) {
		t.Errorf("nothing to report: %+v, %v", got, ok)
	}
	most := list(maxItems)
	for range maxItems {
		most = phase(most, "p", 1)
	}
	if got, ok := parseReport(etf.AppendNil(most)); !ok || len(got.Phases) != maxItems {
		t.Errorf("%d phases: %d, %v", maxItems, len(got.Phases), ok)
	}
	// An item that is malformed or not known spoils none of those around it.
	alone := Report{Phases: []Phase{{"before", 1 * time.Millisecond}, {"after", 2 * time.Millisecond}}, Switches: 3}
	for what, item := range map[string][]byte{
		"an atom":           etf.AppendAtom(nil, "phase"),
		"an empty tuple":    etf.AppendTuple(nil, 0),
		"a number":          etf.AppendInteger(appendKey(nil, "phase"), 1),
		"a name as number":  etf.AppendInteger(etf.AppendInteger(etf.AppendAtom(etf.AppendTuple(nil, 3), "phase"), 17), 1),
		"a name as text":    etf.AppendInteger(appendText(etf.AppendAtom(etf.AppendTuple(nil, 3), "phase"), "x"), 1),
		"before the start":  phase(nil, "p", -1),
		"switches negative": etf.AppendInteger(appendKey(nil, "switches"), -1),
		"local an atom":     etf.AppendAtom(appendKey(nil, "local"), "x"),
		"a map":             {116, 0, 0, 0, 1, 106, 106},
		"a float":           append(appendKey(nil, "moon"), 70, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0),
		"deep":              append([]byte(strings.Repeat("h\x01", 1000)), 106),
	} {
		around := append(phase(etf.AppendInteger(appendKey(list(4), "switches"), 3), "before", 1), item...)
		if got, ok := parseReport(etf.AppendNil(phase(around, "after", 2))); !ok || !reflect.DeepEqual(got, alone) {
			t.Errorf("%s: %+v, %v; want %+v", what, got, ok, alone)
		}
	}
	for what, frame := range map[string][]byte{
		"too many":  etf.AppendNil(appendAtoms(list(maxItems+1), make([]string, maxItems+1))),
		"no list":   etf.AppendAtom(beginTerm(2, atomReport), "x"),
		"no term":   etf.AppendNil(append(list(1), 1)),
		"cut short": phase(list(2), "p", 1),
	} {
		if got, ok := parseReport(frame); ok {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// FuzzExtended decodes what our loader would never send.
func FuzzExtended(f *testing.F) {
	_, requests := recordings(f)
	for _, frame := range requests["testdata/session.sent"] {
		f.Add(frame)
	}
	f.Add(askOpen(true, "tree", "plan")[headerSize:])
	f.Add(option("boot", etf.AppendInteger(nil, 1<<48-1)))
	f.Add(option("moon", appendTexts(nil, []string{"a"})))
	f.Add(option("moon", append([]byte(strings.Repeat("h\x01", 100)), 116, 0, 0, 0, 0)))
	f.Add(askFetch("lib/kernel/ebin/error_logger.beam", "b")[headerSize:])
	f.Add(askReport("kernel_load_completed", 300)[headerSize:])
	f.Fuzz(func(t *testing.T, frame []byte) {
		if o, ok := parseOpen(frame); ok {
			texts := []string{o.Digest, o.Bundle, o.Script, o.Root}
			for _, text := range texts {
				if strings.ToValidUTF8(text, "") != text || len(text) > 3*maxText {
					t.Errorf("a text of %d bytes: %.100q", len(text), text)
				}
			}
			if o.Age < 0 || o.Boot >= 1<<48 || o.Mode != "interactive" && o.Mode != "embedded" {
				t.Errorf("%+v", o)
			}
		}
		if wanted, ok := parseFetch(frame); ok {
			n, size := 0, 0
			for path := range wanted.all {
				n++
				size += len(path)
			}
			if n != wanted.count || n > MaxFetch || size > len(frame) {
				t.Errorf("%d paths of %d bytes, counted %d", n, size, wanted.count)
			}
		}
		if r, ok := parseReport(frame); ok && (len(r.Phases) > maxItems || r.Switches < 0 || r.Local < 0) {
			t.Errorf("%+v", r)
		}
		if what := extensionOf(frame); what != "" && !strings.Contains(string(frame), what) {
			t.Errorf("%s out of % x", what, frame)
		}
	})
}

// FuzzExtendedRequest sends a frame to an opened connection and a stock request after it:
// whatever comes is whole terms, up to the reply to the latter or the end.
func FuzzExtendedRequest(f *testing.F) {
	_, requests := recordings(f)
	for _, frame := range requests["testdata/session.sent"] {
		f.Add(frame)
	}
	for _, request := range [][]byte{askOpen(true, "tree", "plan"), askFetch("bin/start.boot", "none", "a\x00"), askReport("started", 1), ask("get", "/bin")} {
		f.Add(request[headerSize:])
	}
	f.Add(beginTerm(2, atomFetch))
	files := newExtendedTree()
	server := NewFileServer(FileServerOptions{Host: files})
	ln := newPipes()
	serveUntilCleanup(f, server, ln)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > MaxFrame {
			return
		}
		conn := ln.dial()
		var sending sync.WaitGroup
		sending.Go(func() {
			_, _ = conn.Write(slices.Concat(askOpen(false), packet(frame), ask("get", "/lib/é"))) // fails when the server has closed
		})
		defer sending.Wait()
		defer conn.Close()
		for replies := 0; ; replies++ {
			reply, err := readPacket(conn)
			if err != nil {
				if what := extensionOf(frame); !errors.Is(err, io.EOF) || replies < 1 || what != atomFetch && !bytes.Contains(frame, []byte("/damaged")) {
					t.Fatalf("%v after %d replies", err, replies)
				}
				return
			}
			text, err := etf.Format(reply)
			if err != nil {
				t.Fatalf("% x is no term", reply)
			}
			if text == `{get,{ok,<<"accent">>}}` {
				return
			}
		}
	})
}
