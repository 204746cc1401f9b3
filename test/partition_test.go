package test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// cutKind is which packets between a server and the others are lost.
type cutKind string

const (
	cutWhole cutKind = "cut off"
	cutMute  cutKind = "not heard by the others"
	cutDeaf  cutKind = "not hearing the others"
)

// partition is one trial: a server that is cut off from the two others, with a slave that
// reaches only this server.
type partition struct {
	leads bool
	kind  cutKind
	least time.Duration // of the cut
}

func (p partition) String() string {
	role := "follower"
	if p.leads {
		role = "leader"
	}
	return fmt.Sprintf("%s %s, %v", role, p.kind, p.least)
}

// partitioned is the longest time that something may take with a server cut off: the
// promise in `make acceptance`, three times as long on a machine that does other things too.
func partitioned(promise time.Duration) time.Duration {
	if trials(2) == 2 {
		return promise
	}
	return 3 * promise
}

// TestAcceptancePartition cuts one server off, the leader or a follower: the majority goes
// on, the minority boots slaves by what it knows and refuses writes, and when the cut is healed
// all is as it was, within seconds.
func TestAcceptancePartition(t *testing.T) {
	erl := testutil.RequireErl(t)
	network := testnet.New(t, 4)
	slave := network.Host(3)
	c := startBootable(t, erl, 3, slave.Address.String()+"/32", clusterOptions{Network: network})
	all := []partition{{true, cutWhole, 0}, {false, cutWhole, 0}}
	if trials(2) == 2 {
		const long = 65 * time.Second // longer than anything that servers or slaves wait for
		all = append(all,
			partition{true, cutMute, 10 * time.Second}, partition{true, cutDeaf, 10 * time.Second},
			partition{false, cutMute, 10 * time.Second}, partition{false, cutDeaf, 10 * time.Second},
			partition{true, cutWhole, long}, partition{false, cutWhole, long},
			partition{true, cutMute, long}, partition{true, cutDeaf, long},
			partition{false, cutMute, long}, partition{false, cutDeaf, long},
		)
	}
	for i, p := range all {
		t.Run(p.String(), func(t *testing.T) { p.run(t, erl, c, slave, i) })
	}
}

func (p partition) run(t *testing.T, erl testutil.Erlang, c *serverCluster, slave *testnet.Host, number int) {
	c.WaitFormed(t)
	c.Allow(t, slave.Address.String()+"/32")
	c.WaitReady(t, erl, slave.Address.String())
	victim := c.Leader(t)
	if !p.leads {
		victim = c.Followers(t)[number%2]
	}
	var missing, majority []string
	for _, o := range c.Others(victim) {
		missing = append(missing, o.ID(t))
		majority = append(majority, "unix://"+o.socket())
	}
	others := newTestClient(t, majority...)

	began := time.Now()
	p.cut(c.network, victim, c.Others(victim), slave)
	// Both at once: a write to the majority, until one succeeds, and one to the minority.
	refused := make(chan refusal, 1)
	go func() { refused <- refuse(victim.Client, number) }()
	testutil.Poll(t, partitioned(5*time.Second)+5*time.Second, "majority is to take a write", func() bool {
		_, err := others.Allow(t.Context(), partitionEntry(number, 1))
		return err == nil
	})
	went := time.Since(began)
	if limit := partitioned(5 * time.Second); went > limit {
		t.Errorf("the majority took a write after %v, want at most %v", went, limit)
	}
	first := <-refused
	first.check(t, missing)
	again := make(chan refusal, 1)
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	go func() { again <- refuseCommand(path, victim, number) }()

	boot := func() time.Duration {
		chosen, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Namespace: slave.Namespace})
		if chosen != victim {
			t.Errorf("a slave that reaches only %s booted from %s", victim.Name, chosen.Name)
		}
		return exit.Took
	}
	boots := []time.Duration{boot()}
	// A server in the minority serves by what it knows, so a slave that was denied in the
	// meantime still boots there: the price of booting without a majority.
	if _, err := others.Deny(t.Context(), netip.PrefixFrom(slave.Address, 32)); err != nil {
		t.Fatalf("deny: %v", err)
	}
	boots = append(boots, boot())
	second := <-again
	second.check(t, missing)
	testutil.Poll(t, p.least+time.Second, "cut is to last", func() bool { return time.Since(began) >= p.least })

	stays := time.Second // gossip may notice late what was
	if trials(2) == 2 {
		stays = 5 * time.Second
	}
	lasted := time.Since(began)
	c.network.Heal()
	healed := time.Now()
	var why string
	var well time.Time // since when all has been well
	testutil.Poll(t, partitioned(10*time.Second)+20*time.Second, "servers are to be one cluster again, and to stay so", func() bool {
		before := why
		why = c.divided(t)
		switch {
		case why == "" && well.IsZero():
			well = time.Now()
		case why != "":
			well = time.Time{}
			if why != before {
				t.Logf("%v after healing: %s", round(time.Since(healed)), why)
			}
		}
		return !well.IsZero() && time.Since(well) >= stays
	})
	converged := well.Sub(healed)
	if limit := partitioned(10 * time.Second); converged > limit {
		t.Errorf("after healing, all was well in %v, want at most %v", converged, limit)
	}
	if answers := c.discover(t, erl, slave.Address.String()); len(answers) != 0 {
		t.Errorf("a slave that was denied is answered after healing: %+v", answers)
	}
	if _, err := victim.Client.Allow(t.Context(), partitionEntry(number, 4)); err != nil {
		t.Errorf("write to %s after healing: %v", victim.Name, err)
	}
	t.Logf("%v: the majority took a write after %v; the minority refused one in %v (exit code %d) and one by command in %v (exit code %d), and booted slaves in %v; after %v it was healed, and all well %v later",
		p, round(went), round(first.took), first.code, round(second.took), second.code, boots, round(lasted), round(converged))
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func (p partition) cut(network *testnet.Network, victim *clusterServer, others []*clusterServer, slave *testnet.Host) {
	for _, o := range others {
		network.Cut(slave, o.host)
		switch p.kind {
		case cutWhole:
			network.Cut(victim.host, o.host)
		case cutMute:
			network.CutOneWay(victim.host, o.host)
		case cutDeaf:
			network.CutOneWay(o.host, victim.host)
		}
	}
}

// partitionEntry is an entry of its own for each write.
func partitionEntry(trial, write int) eboot.WhitelistEntry {
	address := netip.AddrFrom4([4]byte{10, 9, byte(trial), byte(write)})
	return eboot.WhitelistEntry{Prefix: netip.PrefixFrom(address, 32), Channel: eboot.DefaultChannel}
}

// refusal is how a server refused a write.
type refusal struct {
	code int // exit code of the program, or what it would have been
	text string
	took time.Duration
}

// Exit codes of the program.
const (
	codeNotProposed = 2
	codeUnknown     = 7
)

func refuse(client *api.Client, trial int) refusal {
	began := time.Now()
	_, err := client.Allow(context.Background(), partitionEntry(trial, 2))
	r := refusal{text: fmt.Sprint(err), took: time.Since(began), code: 1}
	switch {
	case err == nil:
		r.code = 0
	case errors.Is(err, eboot.ErrUnknownOutcome):
		r.code = codeUnknown
	case errors.Is(err, eboot.ErrNoLeader):
		r.code = codeNotProposed
	}
	return r
}

// refuseCommand has the program at path write to a server, and to no other.
func refuseCommand(path string, s *clusterServer, trial int) refusal {
	began := time.Now()
	command := exec.Command(path, "slave", "allow", partitionEntry(trial, 3).Prefix.String(), "--address", "unix://"+s.socket())
	out, err := command.CombinedOutput()
	r := refusal{text: string(out), took: time.Since(began)}
	if err != nil {
		r.text += err.Error()
	}
	if command.ProcessState != nil {
		r.code = command.ProcessState.ExitCode()
	}
	return r
}

func (r refusal) check(t *testing.T, missing []string) {
	t.Helper()
	if r.code != codeNotProposed && r.code != codeUnknown {
		t.Errorf("a write to the minority ended with code %d, want %d or %d: %s", r.code, codeNotProposed, codeUnknown, r.text)
	}
	if !names(r.text, missing) {
		t.Errorf("the minority refused a write and does not name the missing servers %v: %s", missing, r.text)
	}
	if limit := partitioned(3 * time.Second); r.took > limit {
		t.Errorf("the minority refused a write after %v, want at most %v", r.took, limit)
	}
}

func names(text string, servers []string) bool {
	for _, s := range servers {
		if !strings.Contains(text, s) {
			return false
		}
	}
	return true
}

// divided says what is missing before all servers see all others alive, ready and with the
// same state.
func (c *serverCluster) divided(t testing.TB) string {
	t.Helper()
	statuses := c.statuses()
	var digest eboot.Digest
	var leader string
	var index uint64
	for i, s := range c.servers {
		status, ok := statuses[s]
		switch {
		case !ok:
			return s.Name + " does not answer"
		case status.Leader == "":
			return s.Name + " knows no leader"
		case i > 0 && status.Leader != leader:
			return s.Name + " knows another leader"
		case i > 0 && status.StateDigest != digest:
			return s.Name + " has another state"
		case !status.Readiness.Ready:
			return fmt.Sprintf("%s is not ready: %v", s.Name, status.Readiness.Reasons)
		}
		leader, digest = status.Leader, status.StateDigest
	}
	for _, s := range c.servers {
		m, err := s.Client.Members(t.Context())
		if err != nil || len(m.Members) != len(c.servers) {
			return fmt.Sprintf("%s lists %d members: %v", s.Name, len(m.Members), err)
		}
		for _, d := range m.Members {
			if d.Health != eboot.HealthAlive || !d.Ready || !d.Voter || d.Problem != "" {
				return fmt.Sprintf("%s says that %s is %s, ready %v, voter %v: %s", s.Name, d.ID, d.Health, d.Ready, d.Voter, d.Problem)
			}
			if index == 0 {
				index = d.AppliedIndex
			}
			if d.AppliedIndex != index {
				return fmt.Sprintf("%s says that %s has index %d, not %d", s.Name, d.ID, d.AppliedIndex, index)
			}
		}
	}
	return ""
}
