package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/cluster/gossip"
	"eboot/fsm"
	"eboot/internal/testutil"
)

var stock = eboot.ChannelOptions{Loader: eboot.LoaderStock}

// A server alone uses options at once, and a backup that has them can be restored into a
// new server, which nobody has told of a newer version.
func TestOptionsOfAServerAlone(t *testing.T) {
	t.Parallel()
	first := start(t, settings(t))
	set := func(what api.ChannelSet) (api.WriteResult, error) {
		return first.client.SetChannel(t.Context(), "canary", what)
	}
	if _, err := set(api.ChannelSet{}); !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), "neither a bundle nor options") {
		t.Errorf("nothing: %v", err)
	}
	if _, err := set(api.ChannelSet{Options: eboot.ChannelOptions{Loader: "fast"}}); !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), "want eboot or stock") {
		t.Errorf("another loader: %v", err)
	}
	if r, err := set(api.ChannelSet{Options: stock}); err != nil || !r.Changed || r.Generation != 1 {
		t.Fatalf("stock: %+v, %v", r, err)
	}
	if _, err := set(api.ChannelSet{Options: stock, Bundle: app("9")}); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("with a bundle that is not there: %v", err)
	}
	first.publish(t, "1", "canary")
	if c, err := first.client.Channel(t.Context(), "canary"); err != nil || c.Options != stock || len(c.Bundles) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	var backup bytes.Buffer
	if _, err := first.client.SaveSnapshot(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	second := start(t, settings(t))
	if _, err := second.client.RestoreSnapshot(t.Context(), &backup, false); err != nil {
		t.Fatal(err)
	}
	if got := second.view.State().ChannelOptions("canary"); got != stock {
		t.Errorf("restored: %+v", got)
	}
}

// A server that is too old to read options keeps the others from using them, on whichever
// server they are set; when it is upgraded they can be at once.
func TestOptionsWaitForEveryServer(t *testing.T) {
	t.Parallel()
	know := func(s *server, version int) {
		s.peers.gossip.Update(func(m *gossip.Meta) { m.StateVersion = version })
	}
	// Two are old, so that the leader hears of one that is not itself.
	first, startFirst := grouped(t, 3)
	_, startSecond := grouped(t, 3, first)
	_, startThird := grouped(t, 3, first)
	servers := []*server{startFirst()}
	know(servers[0], 1)
	servers = append(servers, startSecond())
	know(servers[1], 1)
	// Before there is a leader who could take it for a new one.
	testutil.Poll(t, patience, "the first server is to hear how old the second is", func() bool {
		m, ok := servers[0].peers.member(servers[1].server)
		return ok && m.StateVersion == 1
	})
	servers = append(servers, startThird())
	for _, s := range servers {
		testutil.Poll(t, 60*time.Second, "the server is to be a member and to know a leader", func() bool {
			return s.machine.State().Cluster() != "" && s.cluster.Standing() == nil
		})
	}
	set := func(s *server) error {
		_, err := s.client.SetChannel(t.Context(), "stable", api.ChannelSet{Options: stock})
		return err
	}
	leader, followers := leading(t, servers)
	for i, s := range []*server{leader, followers[0]} {
		if err := set(s); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "upgrade every server first") {
			t.Errorf("server %d: %v", i, err)
		}
	}
	other := &testLog{t: t, machine: fsm.New(nil)}
	other.apply(fsm.RaiseVersion{Header: other.header(), Version: fsm.Version})
	other.apply(fsm.ConfigureChannel{Header: other.header(), Channel: "stable", Options: stock})
	var backup bytes.Buffer
	if _, err := other.machine.State().WriteTo(&backup); err != nil {
		t.Fatal(err)
	}
	if _, err := servers[0].client.RestoreSnapshot(t.Context(), &backup, true); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), "restore: the cluster is at version 1") {
		t.Errorf("restore: %v", err)
	}
	for _, s := range servers {
		know(s, fsm.Version)
	}
	testutil.Poll(t, 20*time.Second, "options are to be allowed", func() bool { return set(followers[0]) == nil })
	if got := followers[0].view.State().ChannelOptions("stable"); got != stock {
		t.Errorf("%+v", got)
	}
}

// A script that can be read is shown as published and as it is served; another one is
// served as it was published, and that is said.
func TestBootScript(t *testing.T) {
	t.Parallel()
	s := start(t, settings(t))
	script := testutil.Encode(testutil.Tuple{testutil.Atom("script"), testutil.Tuple{"app", "1"}, testutil.List{
		testutil.Tuple{testutil.Atom("preLoaded"), testutil.List{testutil.Atom("init")}},
		testutil.Tuple{testutil.Atom("progress"), testutil.Atom("preloaded")},
		testutil.Tuple{testutil.Atom("path"), testutil.List{"$ROOT/lib/app-1/ebin"}},
	}})
	for version, content := range map[string]string{"1": string(script), "2": "no script"} {
		tree := release(version)
		tree["releases/1/start.boot"] = content
		if _, err := s.client.Publish(t.Context(), api.Publish{
			Ref: app(version), ERTS: []string{testERTS, "15.0"}, BootScript: "releases/1/start.boot", Source: tree,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.client.BootScript(t.Context(), app("1"), ""); !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), "13.1.5, 15.0") {
		t.Errorf("for which ERTS version? %v", err)
	}
	got, err := s.client.BootScript(t.Context(), app("1"), testERTS)
	if err != nil || got.Path != "releases/1/start.boot" || got.Warning != "" {
		t.Fatalf("%+v, %v", got, err)
	}
	if !strings.Contains(got.Before, "{progress,preloaded}") || strings.Contains(got.Before, "eboot_loader") {
		t.Errorf("before: %s", got.Before)
	}
	for _, instruction := range []string{"{progress,preloaded}", "{apply,{erlang,load_module,[eboot_loader,", "{kernelProcess,eboot_loader,"} {
		if !strings.Contains(got.After, instruction) {
			t.Errorf("no %s in %s", instruction, got.After)
		}
	}
	got, err = s.client.BootScript(t.Context(), app("2"), testERTS)
	if err != nil || got.Before != "" || got.After != "" || !strings.Contains(got.Warning, "as it was published") {
		t.Errorf("no script: %+v, %v", got, err)
	}
}

// scriptOf is a source of one script.
type scriptOf struct {
	before, after string
	err           error
}

func (s scriptOf) rewritten(b eboot.Bundle) (string, []byte, []byte, error) {
	return b.BootScript, []byte(s.before), []byte(s.after), s.err
}

func (s scriptOf) text(script []byte) (string, error) {
	if string(script) == "junk" {
		return "", fmt.Errorf("script: is junk: %w", eboot.ErrInvalid)
	}
	return "text of " + string(script), nil
}

func TestShowScript(t *testing.T) {
	b := eboot.Bundle{Name: "app", Version: "1", ERTS: testERTS, BootScript: "bin/start.boot"}
	refused := fmt.Errorf("no loader for this ERTS: %w", eboot.ErrInvalid)
	for name, tc := range map[string]struct {
		source scriptOf
		want   api.BootScript
		err    error
	}{
		"OK":             {scriptOf{before: "a", after: "b"}, api.BootScript{Path: "bin/start.boot", Before: "text of a", After: "text of b"}, nil},
		"as it is":       {scriptOf{before: "a", err: refused}, api.BootScript{Path: "bin/start.boot", Before: "text of a", After: "text of a", Warning: refused.Error()}, nil},
		"not a script":   {scriptOf{before: "junk", err: refused}, api.BootScript{Path: "bin/start.boot", Warning: refused.Error()}, nil},
		"ErrUnavailable": {scriptOf{err: eboot.ErrUnavailable}, api.BootScript{Path: "bin/start.boot"}, eboot.ErrUnavailable},
		"ErrInvalid":     {scriptOf{before: "a", after: "junk"}, api.BootScript{Path: "bin/start.boot", Before: "text of a"}, eboot.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := showScript(tc.source, b)
			if got != tc.want || !errors.Is(err, tc.err) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestOneBundle(t *testing.T) {
	one, other := eboot.Bundle{ERTS: "13.1.5"}, eboot.Bundle{ERTS: "15.0"}
	for _, tc := range []struct {
		bundles []eboot.Bundle
		erts    string
		want    string
		err     error
		text    string
	}{
		{nil, "", "", eboot.ErrNotFound, "does not exist"},
		{nil, "15.0", "", eboot.ErrNotFound, "does not exist"},
		{[]eboot.Bundle{one}, "", "13.1.5", nil, ""},
		{[]eboot.Bundle{one, other}, "15.0", "15.0", nil, ""},
		{[]eboot.Bundle{one, other}, "", "", eboot.ErrInvalid, "13.1.5, 15.0"},
		{[]eboot.Bundle{one, other}, "16.0", "", eboot.ErrNotFound, "13.1.5, 15.0"},
	} {
		got, err := oneBundle(tc.bundles, app("1"), tc.erts)
		if got.ERTS != tc.want || !errors.Is(err, tc.err) || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%d bundles, ERTS %q: %q, %v", len(tc.bundles), tc.erts, got.ERTS, err)
		}
	}
}
