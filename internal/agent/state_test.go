package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/fsm"
)

// testLog makes states by commands.
type testLog struct {
	t       *testing.T
	machine *fsm.Machine
	index   uint64
}

func (l *testLog) header() fsm.Header { return fsm.Header{RequestID: fmt.Sprintf("r%d", l.index)} }

func (l *testLog) apply(c fsm.Command) {
	l.t.Helper()
	entry, err := c.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	l.index++
	if r := l.machine.Apply(l.index, entry).(*fsm.Result); r.Err != nil {
		l.t.Fatal(r.Err)
	}
}

// logOf is a state of cluster "one" after some changes of what slaves may boot, and some
// that change nothing of that.
func logOf(t *testing.T, generations, others int) *fsm.State {
	t.Helper()
	l := &testLog{t: t, machine: fsm.New(nil)}
	l.apply(fsm.Init{Header: l.header(), ClusterID: "one"})
	for i := range generations {
		l.apply(fsm.AllowSlaves{Header: l.header(), Entries: []eboot.WhitelistEntry{{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), Channel: "stable",
		}}})
	}
	for i := range others {
		l.apply(fsm.SetDrained{Header: l.header(), Server: "other", Drained: i%2 == 0})
	}
	return l.machine.State()
}

// Who may publish opens no ports and fills no memory: what is published under the name of a
// bundle that is being rolled out, for ERTS versions that the rollout does not move, waits.
func TestPublishedBesideARollout(t *testing.T) {
	l := &testLog{t: t, machine: fsm.New(nil)}
	l.apply(fsm.RaiseVersion{Header: l.header(), Version: fsm.Version})
	publish := func(erts string) {
		content := []byte("app for " + erts)
		l.apply(fsm.AddBundle{Header: l.header(), Bundle: eboot.Bundle{
			Name: "app", Version: "2", ERTS: erts, Manifest: eboot.DigestOf(content), Times: eboot.DigestOf(content), BootScript: "releases/1/start.boot", Holders: []string{"one"},
		}})
	}
	publish("14.0")
	stage, err := eboot.ParseStage("100%")
	if err != nil {
		t.Fatal(err)
	}
	l.apply(fsm.StartRollout{Header: l.header(), ID: "one", Channel: "stable", Ref: app("2"), Spec: eboot.RolloutSpec{
		Stages: []eboot.Stage{stage}, DeadlineMS: 60_000, MinHealthyMS: 30_000,
	}})
	for i := range 40 {
		publish(fmt.Sprintf("1.%d", i))
	}
	for b := range channelBundles(l.machine.State()) {
		if b.ERTS != "14.0" {
			t.Errorf("%s for ERTS %s is served", b.Ref(), b.ERTS)
		}
	}
	r, _ := l.machine.State().Rollout("stable")
	for erts, want := range map[string]string{"1.0": "does not move slaves of ERTS 1.0", "14.0": "this slave boots it", "": "this slave boots it"} {
		e := &explainer{out: eboot.Explanation{Slave: netip.MustParseAddr("10.0.0.1")}}
		explainRollout(e, l.machine.State(), &r, &eboot.WhitelistEntry{Channel: "stable"}, erts)
		if len(e.out.Steps) != 1 || !strings.Contains(e.out.Steps[0].Detail, want) {
			t.Errorf("ERTS %q: %+v, want %q", erts, e.out.Steps, want)
		}
	}
}

// Whatever the machine is given while the server runs, and however long the log is that
// comes, what is served never has a lower generation than before.
func TestServedStateNeverGoesBack(t *testing.T) {
	t.Parallel()
	served := logOf(t, 5, 0)
	for name, next := range map[string]struct {
		state   *fsm.State
		follows bool
	}{
		"the same":                       {logOf(t, 5, 0), true},
		"newer":                          {logOf(t, 6, 0), true},
		"longer, of the same generation": {logOf(t, 5, 3), true},
		"shorter":                        {logOf(t, 4, 0), false},
		"longer, of a lower generation":  {logOf(t, 3, 20), false},
		"empty":                          {fsm.New(nil).State(), false},
	} {
		machine := fsm.New(served)
		v := &stateView{machine: machine, founded: "one", logger: hclog.NewNullLogger()}
		if !v.settle() || v.State().Generation() != served.Generation() {
			t.Fatal("the first state is not served")
		}
		var snapshot bytes.Buffer
		if _, err := next.state.WriteTo(&snapshot); err != nil {
			t.Fatal(err)
		}
		if err := machine.Restore(&snapshot); err != nil {
			t.Fatal(err)
		}
		before := v.State() // a search may come before anybody has settled
		if settled := v.settle(); settled != next.follows {
			t.Errorf("%s: settled %v", name, settled)
		}
		want := served
		if next.follows {
			want = next.state
		}
		for _, now := range []*fsm.State{before, v.State()} {
			if now.Index() != want.Index() || now.Generation() != want.Generation() {
				t.Errorf("%s: serves index %d, generation %d, want %d, %d", name, now.Index(), now.Generation(), want.Index(), want.Generation())
			}
		}
	}
}

// An old data directory was put back, and its log was written on until it was longer than
// the one that slaves were served by: the server keeps what it knows to be newer.
func TestLogThatWentAnotherWay(t *testing.T) {
	t.Parallel()
	c := settings(t)
	s := start(t, c)
	s.allow(t, "127.0.0.0/8", "")
	s.publish(t, "1", eboot.DefaultChannel)
	s.stop(t)
	old := filepath.Join(t.TempDir(), "raft")
	copyDir(t, filepath.Join(c.DataDir, "raft"), old)

	s = start(t, c)
	s.publish(t, "2", eboot.DefaultChannel)
	newest := s.settled(t)
	s.stop(t)
	cache, err := os.ReadFile(filepath.Join(c.DataDir, "serving-cache"))
	if err != nil {
		t.Fatal(err)
	}

	moveAway(t, c.DataDir, "raft", "serving-cache")
	copyDir(t, old, filepath.Join(c.DataDir, "raft"))
	s = start(t, c)
	s.boots(t, "127.0.0.1", "1") // nobody knows better
	for i := range 10 {
		if _, err := s.client.DrainServer(t.Context(), s.server, i%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
	if s.machine.State().Index() <= newest.AppliedIndex || s.machine.State().Generation() >= newest.Generation {
		t.Fatalf("index %d, generation %d after %d, %d: nothing is tested", s.machine.State().Index(), s.machine.State().Generation(), newest.AppliedIndex, newest.Generation)
	}
	s.stop(t)
	if err := os.WriteFile(filepath.Join(c.DataDir, "serving-cache"), cache, 0o600); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second start finds what the first one kept
		s = start(t, c)
		s.notReady(t, "the raft log went another way")
		s.boots(t, "127.0.0.1", "2")
		s.refusesWrites(t, "this server has served generation")
		if now := s.Status(); now.StateDigest != newest.StateDigest {
			t.Errorf("serves generation %d, digest %s; had %d, %s", now.Generation, now.StateDigest, newest.Generation, newest.StateDigest)
		}
		s.stop(t)
	}
	moveAway(t, c.DataDir, "serving-cache") // so says the operator
	s = start(t, c)
	s.boots(t, "127.0.0.1", "1")
	s.ready(t)
}
