package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/fsm"
)

// logOf is a state of cluster "one" after some changes of what slaves may boot, and some
// that change nothing of that.
func logOf(t *testing.T, generations, others int) *fsm.State {
	t.Helper()
	m, index := fsm.New(nil), uint64(0)
	apply := func(c fsm.Command) {
		entry, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		index++
		if r := m.Apply(index, entry).(*fsm.Result); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	header := func() fsm.Header { return fsm.Header{RequestID: fmt.Sprintf("r%d", index)} }
	apply(fsm.Init{Header: header(), ClusterID: "one"})
	for i := range generations {
		apply(fsm.AllowSlaves{Header: header(), Entries: []eboot.WhitelistEntry{{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), Channel: "stable",
		}}})
	}
	for i := range others {
		apply(fsm.SetDrained{Header: header(), Server: "other", Drained: i%2 == 0})
	}
	return m.State()
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
