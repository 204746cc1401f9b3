package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// TestAcceptanceStale cuts one server off and denies a slave on the other side (S16, T4). With
// whitelist.max_stale the server that is cut off stops serving within that time; without, it goes on:
// the price of booting without a majority. Another slave boots in both cases, and after
// the cut all is as it was.
func TestAcceptanceStale(t *testing.T) {
	t.Parallel()
	erl := testutil.RequireErl(t)
	for _, maxStale := range []time.Duration{5 * time.Second, 0} {
		for _, leads := range []bool{true, false}[:trials(2)] {
			t.Run(fmt.Sprintf("max_stale %v, leader cut off %v", maxStale, leads), func(t *testing.T) { cutOff(t, erl, maxStale, leads) })
		}
	}
}

func cutOff(t *testing.T, erl testutil.Erlang, maxStale time.Duration, leads bool) {
	network := testnet.New(t, 5)
	denied, allowed := network.Host(3), network.Host(4)
	c := startBootable(t, erl, 3, allowed.Address.String(), clusterOptions{Network: network, Settings: []string{"EBOOT_WHITELIST_MAX_STALE=" + maxStale.String()}})
	c.Allow(t, denied.Address.String())
	c.WaitReady(t, erl, denied.Address.String())
	victim := c.Leader(t)
	if !leads {
		victim = c.Followers(t)[0]
	}
	var majority []string
	for _, o := range c.Others(victim) {
		majority = append(majority, "unix://"+o.socket())
	}
	others := newTestClient(t, majority...)
	answers := func(slave *testnet.Host) (from []string) {
		for _, a := range c.discover(t, erl, slave.Address.String()) {
			from = append(from, a.Server.Name)
		}
		return from
	}

	for _, o := range c.Others(victim) {
		network.Cut(victim.host, o.host)
	}
	cut := time.Now()
	testutil.Poll(t, 20*time.Second, "majority is to deny a slave", func() bool {
		_, err := others.Deny(t.Context(), netip.PrefixFrom(denied.Address, 32))
		return err == nil
	})
	deniedAfter := time.Since(cut)
	silentAfter := time.Duration(0)
	limit := max(maxStale, 5*time.Second) + partitioned(1500*time.Millisecond)
	for silentAfter == 0 && time.Since(cut) < limit {
		if !slices.Contains(answers(denied), victim.Name) { // 200 ms at least
			silentAfter = time.Since(cut)
		}
	}
	switch {
	case maxStale > 0 && silentAfter == 0:
		t.Errorf("the server that is cut off serves a slave that was denied for longer than %v", limit)
	case maxStale == 0 && silentAfter > 0:
		t.Errorf("the server that is cut off was silent after %v, with no bound", silentAfter)
	}
	if from := answers(denied); maxStale > 0 && len(from) > 0 {
		t.Errorf("a slave that was denied is answered by %v", from)
	}
	chosen, exit := c.boot(t, erl, testutil.SlaveOptions{Hosts: c.Addresses(), Namespace: allowed.Namespace})
	if maxStale > 0 {
		if chosen == victim {
			t.Error("a slave booted from a server whose state is not confirmed")
		}
		victim.Run(t, "cluster", "ready").want(t, 1).says(t, "longer than whitelist.max_stale (5s)")
		victim.Run(t, "cluster", "status").want(t, 0).says(t, "not ready: the cluster has not confirmed")
		victim.Run(t, "slave", "explain", allowed.Address.String()).says(t, "whitelist.max_stale")
	} else {
		from, _ := c.boot(t, erl, testutil.SlaveOptions{Hosts: []string{victim.Address}, Namespace: denied.Namespace})
		if from != victim {
			t.Errorf("the denied slave booted from %s", from.Name)
		}
	}
	if age := metric(t, victim, "eboot_state_age_seconds"); age < 4 {
		t.Errorf("the state of the server that is cut off is %v s old after %v", age, time.Since(cut))
	}

	network.Heal()
	healed := time.Now()
	c.WaitFormed(t)
	c.WaitReady(t, erl, allowed.Address.String())
	again := time.Since(healed)
	testutil.Poll(t, 20*time.Second, "no server is to answer the slave that was denied", func() bool { return len(answers(denied)) == 0 })
	testutil.Poll(t, 30*time.Second, "the state is to be confirmed again", func() bool { return metric(t, victim, "eboot_state_age_seconds") < 12 })
	if n := strings.Count(victim.Output(), "it answers no slave"); maxStale > 0 && n != 1 || maxStale == 0 && n != 0 {
		t.Errorf("%s logs %d times that it is silent", victim.Name, n)
	}
	t.Logf("denied %v after the cut; the server that was cut off was silent %v after it (0: never, in %v); another slave booted from %s in %v; all served %v after healing",
		round(deniedAfter), round(silentAfter), limit, chosen.Name, round(exit.Took), round(again))
}
