package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/ingest"
	"eboot/internal/testutil"
)

// Modules of a marked release: those that its application loads when it starts, and those
// that a node may load later. All of them differ from one version to the next.
const (
	markedModules = 6
	lateModules   = 8
)

// markedTree is a release whose files say of which version they are.
type markedTree struct {
	Ref    eboot.Ref
	Path   string
	Script []byte            // the boot script, as it was made
	Files  map[string][]byte // of its own application, by path in the tree
}

// makeMarked makes a release whose application fails to start when one of its modules is not
// of the version, or, with crash, when all are.
func makeMarked(t testing.TB, erl testutil.Erlang, version string, crash bool) *markedTree {
	t.Helper()
	tree := &markedTree{Ref: eboot.Ref{Name: "marked", Version: version}, Path: smallTree(t, erl), Files: map[string][]byte{}}
	const lib = "lib/marked-1/ebin"
	ebin := filepath.Join(tree.Path, lib)
	var own []string
	for i := range markedModules + lateModules {
		name := fmt.Sprintf("late_%02d", i-markedModules)
		if i < markedModules {
			name = fmt.Sprintf("marked_%02d", i)
			own = append(own, name)
		}
		write(t, ebin+"/"+name+".erl", fmt.Sprintf("-module(%s).\n-export([version/0]).\nversion() -> %q.\n", name, version))
	}
	ending := "supervisor:start_link(?MODULE, [])"
	if crash {
		ending = "exit(crashed)"
	}
	write(t, ebin+"/marked.erl", fmt.Sprintf(`-module(marked).
-behaviour(application).
-export([start/2, stop/1, init/1, version/0]).
version() -> [V] = lists:usort([M:version() || M <- [%s]]), V.
start(_, _) ->
	[begin receive after 10 -> ok end, %q = M:version() end || M <- [%s]],
	%s.
stop(_) -> ok.
init([]) -> {ok, {{one_for_one, 1, 5}, []}}.
`, strings.Join(own, ","), version, strings.Join(own, ","), ending))
	own = append(own, "marked")
	write(t, ebin+"/marked.app", fmt.Sprintf("{application, marked, [{description, \"version %s\"}, {vsn, \"1\"}, {modules, [%s]}, {registered, []},"+
		" {applications, [kernel, stdlib]}, {mod, {marked, []}}]}.\n", version, strings.Join(own, ", ")))
	erl.Run(t, ebin, "+fnu", "-noinput", "-eval", strings.Join(strings.Fields(fmt.Sprintf(`
		[{ok, _} = compile:file(F) || F <- filelib:wildcard("*.erl")],
		_ = application:load(stdlib),
		Version = fun(A) -> {ok, V} = application:get_key(A, vsn), V end,
		ok = file:write_file("start.rel", io_lib:format("~p.~n", [{release, {"marked", %q}, {erts, erlang:system_info(version)},
			[{kernel, Version(kernel)}, {stdlib, Version(stdlib)}, {marked, "1"}]}])),
		ok = systools:make_script("start", [no_warn_sasl, {path, ["."]}]),
		halt(0).`, version)), " "))
	var err error
	if tree.Script, err = os.ReadFile(ebin + "/start.boot"); err != nil {
		t.Fatal(err)
	}
	write(t, tree.Path+"/releases/1/start.boot", string(tree.Script))
	beams, err := filepath.Glob(ebin + "/*.beam")
	if err != nil {
		t.Fatal(err)
	}
	for _, beam := range beams {
		content, err := os.ReadFile(beam)
		if err != nil {
			t.Fatal(err)
		}
		tree.Files[lib+"/"+filepath.Base(beam)] = content
	}
	return tree
}

// publishFor publishes a tree for some ERTS versions and moves no channel unless one is
// named.
func publishFor(t testing.TB, client *api.Client, ref eboot.Ref, path, channel string, erts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	source, err := ingest.Open(ctx, path, ingest.Options{Dereference: true, ERTS: erts})
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	defer func() { _ = source.Close() }()
	found := source.Found()
	if _, err := client.Publish(ctx, api.Publish{
		Ref: ref, ERTS: found.ERTS, BootScript: found.BootScript, SysConfig: found.SysConfig, Channel: channel, Source: source,
	}); err != nil {
		t.Fatalf("publish %s: %v", ref, err)
	}
}

// PublishMarked publishes it; channel stable points to it when it is `current`.
func (c *serverCluster) PublishMarked(t testing.TB, erl testutil.Erlang, tree *markedTree, current bool) {
	t.Helper()
	channel := ""
	if current {
		channel = eboot.DefaultChannel
	}
	publishFor(t, c.client, tree.Ref, tree.Path, channel, erl.ERTS)
}

// setOptions sets options of channel stable.
func (c *serverCluster) setOptions(t testing.TB, options eboot.ChannelOptions) {
	t.Helper()
	if _, err := c.client.SetChannel(t.Context(), eboot.DefaultChannel, api.ChannelSet{Options: options}); err != nil {
		t.Fatalf("channel options %+v: %v", options, err)
	}
}

// allowLabelled lets addresses boot from channel stable, with labels.
func (c *serverCluster) allowLabelled(t testing.TB, labels map[string]string, prefixes ...string) {
	t.Helper()
	var entries []eboot.WhitelistEntry
	for _, text := range prefixes {
		p, err := eboot.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, eboot.WhitelistEntry{Prefix: p, Channel: eboot.DefaultChannel, Labels: labels})
	}
	if _, err := c.client.Allow(t.Context(), entries...); err != nil {
		t.Fatalf("allow %v: %v", prefixes, err)
	}
}

// WaitApplied waits until every server that runs has a state at least as new as the one that
// the cluster has now.
func (c *serverCluster) WaitApplied(t testing.TB) {
	t.Helper()
	var newest uint64
	testutil.Poll(t, formDeadline, "servers are to be up to date", func() bool {
		statuses := c.statuses()
		for _, s := range statuses {
			newest = max(newest, s.Generation)
		}
		for _, s := range statuses {
			if s.Generation < newest {
				return false
			}
		}
		return len(statuses) == len(c.running())
	})
}

// ReplaceLeader kills the leader, waits for another one and starts the first again.
func (c *serverCluster) ReplaceLeader(t testing.TB) {
	t.Helper()
	old := c.Leader(t)
	old.Kill()
	c.Leader(t)
	old.Start(t)
	c.WaitFormed(t)
}

// rollout is the rollout of channel stable now.
func (c *serverCluster) rollout(t testing.TB) eboot.Rollout {
	t.Helper()
	r, err := c.client.Rollout(t.Context(), eboot.DefaultChannel)
	if err != nil {
		t.Fatalf("rollout of channel %s: %v", eboot.DefaultChannel, err)
	}
	return r
}

// WaitRollout waits until the rollout of channel stable is in one of the phases; any other
// end fails the test.
func (c *serverCluster) WaitRollout(t testing.TB, deadline time.Duration, phases ...eboot.RolloutPhase) eboot.Rollout {
	t.Helper()
	var r eboot.Rollout
	defer func() {
		if t.Failed() {
			t.Logf("the rollout: %s", asJSON(r))
			c.logFailures(t)
		}
	}()
	testutil.Poll(t, deadline, fmt.Sprintf("rollout is to be %v", phases), func() bool {
		r = c.rollout(t)
		if r.Phase.Over() && !slices.Contains(phases, r.Phase) {
			t.Fatalf("rollout is %s, want %v: %s", r.Phase, phases, asJSON(r))
		}
		return slices.Contains(phases, r.Phase) || t.Failed()
	})
	return r
}

// logFailures logs the boots that a rollout may have taken for failed, as every server knows
// them.
func (c *serverCluster) logFailures(t testing.TB) {
	for _, s := range c.running() {
		boots, err := s.Client.Boots(context.Background(), netip.Addr{})
		if err != nil {
			t.Logf("boots of %s: %v", s.Name, err)
			continue
		}
		boots = slices.DeleteFunc(boots, func(b eboot.Boot) bool {
			return !b.Loaded.IsZero() && (b.Failure == "" || b.FailedAt.After(b.Loaded.Add(minHealthy)))
		})
		t.Logf("%s (%s) knows of %d boots that did not go well", s.Name, s.id, len(boots))
		for _, b := range boots[:min(20, len(boots))] {
			t.Logf("%s", asJSON(b))
		}
	}
}

func asJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// wantEvents fails the test unless every server has the same changes to tell, and these kinds
// among them as often as told.
func (c *serverCluster) wantEvents(t testing.TB, want map[eboot.EventKind]int) {
	t.Helper()
	c.WaitApplied(t)
	var first []eboot.Event
	for _, s := range c.running() {
		events, err := s.Client.Events(t.Context())
		if err != nil {
			t.Fatalf("events of %s: %v", s.Name, err)
		}
		changes := slices.DeleteFunc(events, func(e eboot.Event) bool { return e.Index == 0 })
		if first == nil {
			first = changes
		}
		if !bytes.Equal([]byte(asJSON(first)), []byte(asJSON(changes))) {
			t.Errorf("%s and %s do not tell the same changes:\n%s\n%s", c.running()[0].Name, s.Name, asJSON(first), asJSON(changes))
		}
	}
	counts := map[eboot.EventKind]int{}
	for _, e := range first {
		counts[e.Kind]++
	}
	for kind, n := range want {
		if counts[kind] != n {
			t.Errorf("%d events %s, want %d; events by kind %v", counts[kind], kind, n, slices.Sorted(maps.Keys(counts)))
		}
	}
}

// spareAddresses gives a host n further addresses, none of which another host has, and
// returns them.
func (w *rolloutWorld) spareAddresses(t testing.TB, n int) []string {
	t.Helper()
	var addresses []string
	var batch strings.Builder
	for i := range n {
		address := fmt.Sprintf("10.83.7.%d", 254-i)
		fmt.Fprintf(&batch, "addr add %s/24 dev eth0\n", address)
		addresses = append(addresses, address)
	}
	file := filepath.Join(t.TempDir(), "addresses")
	write(t, file, batch.String())
	w.simulated.Run("ip", "-batch", file)
	return addresses
}
