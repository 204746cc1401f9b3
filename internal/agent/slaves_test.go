package agent

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/bootproto"
	"eboot/config"
	"eboot/internal/testutil"
)

// A port that somebody else holds is tried again: no write, no restart is needed
// for slaves to be served once it is free.
func TestPortIsTakenOnceItIsFree(t *testing.T) {
	t.Parallel()
	c := settings(t)
	holder, err := net.Listen("tcp4", c.Boot.Bind[0].String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	port := holder.Addr().(*net.TCPAddr).AddrPort().Port()
	c.Boot.TCPPorts = config.PortRange{First: port, Last: port}

	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	s.notReady(t, "no TCP port is open for ERTS "+testERTS)
	if _, ok := s.discover(t); ok {
		t.Fatal("a slave was answered, and there is no port for it")
	}
	want(t, s.Explain(netip.MustParseAddr("127.0.0.1")), "listener", eboot.StepFailed, "widen boot.tcp_ports")
	before := s.settled(t)

	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	wantReply(t, s.connect(t, "127.0.0.1", 7*time.Second), "get", "bin/start.boot", "script of 1")
	s.ready(t)
	if now := s.Status(); now.AppliedIndex != before.AppliedIndex {
		t.Errorf("%d entries were written meanwhile", now.AppliedIndex-before.AppliedIndex)
	}
}

// A boot begins when a boot script is sent, and not before: a slave that only looks
// for one goes on with the bundle that it runs.
func TestBootBeginsWithAScript(t *testing.T) {
	t.Parallel()
	const slave = "127.0.0.1"
	s := start(t, settings(t))
	s.allow(t, "127.0.0.0/8", "")
	pinned := map[string]eboot.Digest{"1": s.publish(t, "1", eboot.DefaultChannel).Bundles[0].Manifest}
	s.boots(t, slave, "1")
	pinned["2"] = s.publish(t, "2", eboot.DefaultChannel).Bundles[0].Manifest

	type request struct{ operation, name, reply string }
	const code = testRoot + "/lib/app-1/ebin/m.beam"
	for _, tc := range []struct {
		name     string
		requests []request
		runs     string // the bundle afterwards
		boots    int    // begun by then
	}{
		{"the script is looked at", []request{
			{"read_file_info", testRoot + "/bin/start.boot", "{ok,{file_info,"},
			{"get", code, "code of 1"},
		}, "1", 1},
		{"its directory is listed", []request{
			{"list_dir", testRoot + "/bin", "start.boot"},
			{"get", code, "code of 1"},
		}, "1", 1},
		{"the script is not there", []request{
			{"get", testRoot + "/nothing.boot", "enoent"},
			{"get", code, "code of 1"},
		}, "1", 1},
		{"the script is below no root", []request{
			{"get", "/elsewhere/bin/start.boot", "enoent"},
			{"get", code, "code of 1"},
		}, "1", 1},
		{"code first, then the script: the connection is of the bundle it began with", []request{
			{"get", code, "code of 1"},
			{"get", testRoot + "/bin/start.boot", "script of 1"},
		}, "1", 1},
		{"not beside the slave, but in the root", []request{ // as init looks for -boot start
			{"get", "/home/slave/start.boot", "enoent"},
			{"get", testRoot + "/bin/start.boot", "script of 2"},
			{"get", code, "code of 2"},
		}, "2", 2},
		{"the next connection of that boot", []request{{"get", code, "code of 2"}}, "2", 2},
	} {
		c := s.connect(t, slave, 5*time.Second)
		for _, r := range tc.requests {
			if reply := ask(t, c, r.operation, r.name); !strings.Contains(reply, r.reply) {
				t.Errorf("%s: %s %s: %s, want %q", tc.name, r.operation, r.name, reply, r.reply)
			}
		}
		c.Close()
		pin, ok := s.fleet.Pin(netip.MustParseAddr(slave), testERTS)
		if !ok || pin.Manifest != pinned[tc.runs] {
			t.Errorf("%s: pinned to %s, want that of app@%s", tc.name, pin.Manifest.Short(), tc.runs)
		}
		if n := len(s.Boots(netip.MustParseAddr(slave))); n != tc.boots {
			t.Errorf("%s: %d boots have begun, want %d", tc.name, n, tc.boots)
		}
	}
}

// want looks for a step of an explanation; a failure must come with advice.
func want(t *testing.T, e eboot.Explanation, step string, result eboot.StepResult, text string) {
	t.Helper()
	for _, s := range e.Steps {
		if s.Step != step {
			continue
		}
		if all := s.Detail + "\n" + e.Advice; s.Result != result || !strings.Contains(all, text) {
			t.Errorf("step %s: %s, %q; want %s with %q", step, s.Result, all, result, text)
		}
		if failed := result == eboot.StepFailed; e.Boots == failed || (e.Advice != "") != failed {
			t.Errorf("step %s: would boot: %v, advice %q", step, e.Boots, e.Advice)
		}
		return
	}
	t.Errorf("no step %q in %+v", step, e)
}

func TestExplain(t *testing.T) {
	t.Parallel()
	c := settings(t)
	c.Boot.Limits.ConnectionsPerAddress = 1
	s := start(t, c)
	s.allow(t, "10.0.0.0/8", "")
	s.allow(t, "127.0.0.1", "")
	s.allow(t, "10.1.0.0/16", "canary")
	s.allow(t, "10.2.0.0/16", "broken")
	s.publish(t, "old", "removed")
	s.publish(t, "1", eboot.DefaultChannel)

	asks := func(slave netip.Addr, erts string) {
		_, _ = s.boot.Answer(bootproto.Query{Slave: netip.AddrPortFrom(slave, 4000), Asked: c.Boot.Bind[0], ERTS: erts}) // silence is an answer, too
	}
	gets := func(slave netip.Addr, names ...string) {
		t.Helper()
		session, err := s.boot.Connect(netip.AddrPortFrom(slave, 4001), testERTS)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close(nil)
		for _, name := range names {
			_, _ = session.Get([]byte(name)) // what it is answered is another test's matter
		}
	}
	for _, tc := range []struct {
		name, slave string
		happens     func(slave netip.Addr)
		step        string
		result      eboot.StepResult
		text        string // in the detail or the advice
	}{
		{"nothing is known of it", "10.0.0.1", nil, "discovery", eboot.StepUnknown, "has not heard"},
		{"it asked", "10.0.0.2", func(a netip.Addr) { asks(a, testERTS) }, "discovery", eboot.StepNote, "was answered"},
		{"not whitelisted", "192.168.0.1", nil, "whitelist", eboot.StepFailed, "eboot slave allow 192.168.0.1"},
		{"not whitelisted, and asks", "192.168.0.2", func(a netip.Addr) { asks(a, testERTS) }, "discovery", eboot.StepNote, "address is not whitelisted"},
		{"a channel without a bundle", "10.1.0.1", nil, "channel", eboot.StepFailed, "eboot channel set canary NAME@VERSION"},
		{"another ERTS", "10.0.0.3", func(a netip.Addr) { asks(a, "12.0") }, "erts", eboot.StepFailed, "publish a bundle for ERTS 12.0 and set channel stable to it"},
		{"a root that the server does not know", "10.0.0.4", func(a netip.Addr) { gets(a, "/elsewhere/bin/start.boot") },
			"roots", eboot.StepFailed, "add the slave's ROOTDIR to boot.roots"},
		{"code outside the roots, after the boot script", "10.0.0.5", func(a netip.Addr) { gets(a, testRoot+"/bin/start.boot", "/home/x/ebin/m.beam") },
			"roots", eboot.StepNote, `"/home/x/ebin/m.beam"`},
		{"the script beside it first", "10.0.0.6", func(a netip.Addr) { gets(a, "/home/x/start.boot", testRoot+"/bin/start.boot") },
			"roots", eboot.StepNote, `"/home/x/start.boot"`},
		{"what it runs", "10.0.0.7", func(a netip.Addr) { asks(a, testERTS); gets(a, testRoot+"/bin/start.boot") },
			"pin", eboot.StepNote, "began with app@1"},
		{"what it runs was removed", "10.0.0.8", func(a netip.Addr) {
			s.allow(t, a.String(), "removed")
			asks(a, testERTS)
			gets(a, testRoot+"/bin/start.boot")
			if _, err := s.client.SetChannel(t.Context(), "removed", api.ChannelSet{Bundle: app("1")}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.client.RemoveBundle(t.Context(), app("old"), "", true); err != nil {
				t.Fatal(err)
			}
		}, "pin", eboot.StepNote, "which was removed: the slave gets no more code until it boots again"},
		{"too many connections", "127.0.0.1", func(a netip.Addr) {
			wantReply(t, s.connect(t, a.String(), 5*time.Second), "get", "bin/start.boot", "script of 1")
		}, "limits", eboot.StepFailed, "raise boot.limits"},
		{"a blob is lost", "10.2.0.1", func(netip.Addr) {
			s.publish(t, "broken", "broken")
			if err := os.Remove(blobPath(c.DataDir, eboot.DigestOf([]byte("code of broken")))); err != nil {
				t.Fatal(err)
			}
			if found, err := s.client.VerifyBundle(t.Context(), app("broken"), nil); err != nil || len(found.Missing) != 1 {
				t.Fatalf("verify: %+v, %v", found, err)
			}
			testutil.Poll(t, patience, "the loss is to be counted", func() bool { return !s.Readiness().Ready })
		}, "bundle", eboot.StepFailed, "eboot bundle verify app@broken, then publish it again"},
		{"the server is stopping, which is said first", "192.168.0.3", func(netip.Addr) { s.boot.draining.Store(true) }, "server", eboot.StepFailed, "ask another server"},
	} {
		slave := netip.MustParseAddr(tc.slave)
		if tc.happens != nil {
			tc.happens(slave)
		}
		e, err := s.client.Explain(t.Context(), slave)
		if err != nil || e.Slave != slave {
			t.Fatalf("%s: %+v, %v", tc.name, e, err)
		}
		if step, rest := tc.step, tc.text; tc.name == "not whitelisted, and asks" {
			// Two things to say at once: the refusal is a note, the whitelist decides.
			want(t, eboot.Explanation{Boots: true, Steps: e.Steps}, step, tc.result, rest)
			continue
		}
		want(t, e, tc.step, tc.result, tc.text)
	}
}
