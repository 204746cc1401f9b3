package agent

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/cluster"
	"eboot/fsm"
	"eboot/internal/servingcache"
	"eboot/internal/testutil"
)

// grouped returns the settings of a server that may belong to a group.
func grouped(t *testing.T, expect int, others ...netip.Addr) (netip.Addr, func() *server) {
	t.Helper()
	c := settings(t)
	a := c.Boot.Bind[0]
	c.TLS.Insecure = true
	c.Cluster.Name, c.Cluster.Expect = "test", expect
	c.Peer.Bind, c.Gossip.Bind = netip.AddrPortFrom(a, 14381), netip.AddrPortFrom(a, 14382)
	c.Publish.Wait = 5 * time.Second
	return a, func() *server {
		for _, o := range others {
			c.Gossip.Seeds = append(c.Gossip.Seeds, netip.AddrPortFrom(o, 14382).String())
		}
		return start(t, c)
	}
}

// trio starts three servers and waits until each knows the cluster and its leader.
func trio(t *testing.T) []*server {
	t.Helper()
	first, startFirst := grouped(t, 3)
	_, startSecond := grouped(t, 3, first)
	_, startThird := grouped(t, 3, first)
	servers := []*server{startFirst(), startSecond(), startThird()}
	for _, s := range servers {
		testutil.Poll(t, 60*time.Second, "the server is to be a member and to know a leader", func() bool {
			return s.machine.State().Cluster() != "" && s.cluster.Standing() == nil
		})
	}
	return servers
}

// leading returns the leader and the others.
func leading(t *testing.T, servers []*server) (leader *server, followers []*server) {
	t.Helper()
	testutil.Poll(t, 20*time.Second, "one server is to lead", func() bool {
		leader, followers = nil, nil
		for _, s := range servers {
			if s.cluster.Status().Role == roleLeader {
				leader = s
			} else {
				followers = append(followers, s)
			}
		}
		return leader != nil && len(followers) == len(servers)-1
	})
	return leader, followers
}

// Whoever is asked, the cluster has it: a write through any server is read on any other
// at once, a bundle is on every disk when its publish is acknowledged, and a pin is known
// to another server before the boot script is.
func TestThreeServersAreOne(t *testing.T) {
	t.Parallel()
	servers := trio(t)
	for i, s := range servers {
		s.allow(t, netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), 32).String(), "stable")
		for _, other := range servers {
			if !other.whitelisted(t, netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}).String()) {
				t.Fatalf("written through server %d and not read on another", i)
			}
		}
	}
	outcome := servers[1].publish(t, "1", "stable")
	if len(outcome.Laggards) > 0 || len(outcome.Bundles[0].Holders) != 3 {
		t.Fatalf("published: %+v", outcome)
	}
	for _, s := range servers {
		s.ready(t)
		if result, err := s.client.VerifyBundle(t.Context(), app("1"), nil); err != nil || !result.OK() {
			t.Fatalf("verify: %+v, %v", result, err)
		}
	}
	servers[0].boots(t, "127.0.0.1", "1")
	slave := netip.MustParseAddr("127.0.0.1")
	testutil.Poll(t, patience, "the pin is to be known everywhere", func() bool {
		return !slices.ContainsFunc(servers, func(s *server) bool {
			_, ok := s.fleet.Pin(slave, outcome.Bundles[0].ERTS)
			return !ok
		})
	})

	membership, err := servers[2].Members(t.Context())
	if err != nil || len(membership.Members) != 3 || membership.FailureTolerance != 1 {
		t.Fatalf("members: %+v, %v", membership, err)
	}
	if _, err := servers[0].DrainServer(t.Context(), api.Write{RequestID: "drain"}, servers[1].server, true); err != nil {
		t.Fatal(err)
	}
	testutil.Poll(t, patience, "the drained server is to be silent", func() bool {
		_, answered := servers[1].discover(t)
		return !answered
	})
	for _, s := range []*server{servers[0], servers[2]} {
		s.answered(t, patience) // it is not drained
	}
}

// Leadership moves while all servers are written to: nobody is refused, and no write is
// done twice or lost.
func TestWritesWhileLeadershipMoves(t *testing.T) {
	t.Parallel()
	servers := trio(t)
	var writers sync.WaitGroup
	var stop atomic.Bool
	var written atomic.Int64
	for n, s := range servers {
		writers.Go(func() {
			for i := 0; !stop.Load() && i < 1<<16; i++ {
				prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), byte(i >> 8), byte(i)}), 32)
				if _, err := s.client.Allow(t.Context(), eboot.WhitelistEntry{Prefix: prefix, Channel: "stable"}); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				written.Add(1)
			}
		})
	}
	for range 3 {
		before := written.Load()
		testutil.Poll(t, 20*time.Second, "writes are to go on", func() bool { return written.Load() > before+20 })
		if _, err := servers[0].client.TransferLeadership(t.Context(), ""); err != nil {
			t.Errorf("transfer: %v", err)
		}
	}
	stop.Store(true)
	writers.Wait()
	if entries, err := servers[1].client.Whitelist(t.Context()); err != nil || int64(len(entries)) != written.Load() {
		t.Fatalf("%d entries of %d acknowledged: %v", len(entries), written.Load(), err)
	}
}

// A removal whose answer was lost may be repeated; the server that was removed is told,
// and a snapshot that is restored is what every server shows next.
func TestRemoveAndRestore(t *testing.T) {
	t.Parallel()
	servers := trio(t)
	leader, followers := leading(t, servers)
	write := api.Write{RequestID: "remove"}
	for range 2 {
		if _, err := leader.RemoveServer(t.Context(), write, followers[0].server, false); err != nil {
			t.Fatal(err)
		}
	}
	followers[0].notReady(t, "was removed from the cluster")
	if _, err := leader.RemoveServer(t.Context(), api.Write{RequestID: "other"}, "no-such-server", false); !errors.Is(err, eboot.ErrNotFound) {
		t.Errorf("remove a server that is not there: %v", err)
	}

	leader.allow(t, "10.0.0.0/8", "stable")
	var backup bytes.Buffer
	if _, err := leader.client.SaveSnapshot(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	leader.allow(t, "192.168.0.0/16", "stable")
	if _, err := followers[1].client.RestoreSnapshot(t.Context(), &backup, true); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*server{leader, followers[1]} {
		if s.whitelisted(t, "192.168.0.1") || !s.whitelisted(t, "10.0.0.1") {
			t.Error("a server shows the state from before the restore")
		}
	}
}

// A server whose raft log is gone, or cannot be read, has the last copy of what its cluster
// agreed on. No cluster is founded beside it, and one that was founded out of its sight does
// not take it in.
func TestLastCopyIsNobodyElses(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, raft string){
		"gone": func(t *testing.T, raft string) {
			if err := os.RemoveAll(raft); err != nil {
				t.Fatal(err)
			}
		},
		"damaged": func(t *testing.T, raft string) {
			if err := os.WriteFile(filepath.Join(raft, "raft.db"), bytes.Repeat([]byte("garbage "), 8192), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			where, startFirst := grouped(t, 1)
			first := startFirst()
			first.allow(t, "127.0.0.0/8", "stable")
			testutil.Poll(t, patience, "the cluster is to have its UUID", func() bool { return first.machine.State().Cluster() != "" })
			lost, data := first.machine.State().Cluster(), first.config.DataDir
			first.stop(t)
			lose(t, filepath.Join(data, "raft"))

			first = startFirst()
			_, startBeside := grouped(t, 0, where)
			beside := startBeside()
			testutil.Poll(t, 20*time.Second, "gossip is to show the server", func() bool { return len(beside.peers.living()) == 1 })
			if err := beside.InitCluster(t.Context()); !errors.Is(err, eboot.ErrConflict) || !strings.Contains(err.Error(), lost) {
				t.Fatalf("founded beside it: %v", err)
			}
			first.stop(t)

			other := beside // which nobody keeps from it now
			testutil.Poll(t, 20*time.Second, "a cluster is to be founded when nobody else is there", func() bool { return other.InitCluster(t.Context()) == nil })
			other.allow(t, "10.0.0.0/8", "stable")
			first = startFirst()
			testutil.Poll(t, 20*time.Second, "the leader is to say why it does not take it in", func() bool {
				return slices.ContainsFunc(other.cluster.Knowledge().Waiting, func(w cluster.Candidate) bool { return w.ID == first.server && strings.Contains(w.Reason, lost) })
			})
			first.notReady(t, "eboot snapshot save")
			if n := len(other.cluster.Status().Servers); n != 1 {
				t.Errorf("%d members", n)
			}
			if !first.whitelisted(t, "127.0.0.1") || first.whitelisted(t, "10.0.0.1") {
				t.Error("the whitelist is not the one of the cluster that was lost")
			}
			first.stop(t)
			if kept, err := servingcache.Load(filepath.Join(data, "serving-cache")); err != nil {
				t.Error(err)
			} else if state, err := fsm.ReadState(bytes.NewReader(kept)); err != nil || state.Cluster() != lost || state.WhitelistSize() != 1 {
				t.Errorf("the cache was overwritten: %v", err)
			}
		})
	}
}

// A server that has just started has applied nothing of its log, and may have lost its serving
// cache: who asks it for a change then is told by the events all the same.
func TestActorsAreToldAfterARestart(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"with its serving cache": false, "without": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, startFirst := grouped(t, 2)
			_, startSecond := grouped(t, 2, first)
			servers := []*server{startFirst(), startSecond()}
			servers[0].allow(t, "10.0.0.0/8", "stable")
			for _, s := range servers {
				s.settled(t)
			}
			// Its disk as kill -9 leaves it: a graceful stop takes a snapshot.
			disk, data := t.TempDir(), servers[0].config.DataDir
			copyDir(t, data, disk)
			for _, s := range servers {
				s.stop(t)
			}
			moveAway(t, data, "raft")
			copyDir(t, filepath.Join(disk, "raft"), filepath.Join(data, "raft"))
			if lost {
				moveAway(t, data, "serving-cache")
			}
			alone := startFirst()
			if v := alone.machine.State().Version(); v >= fsm.VersionActors {
				t.Fatalf("a server without a quorum has applied its log: version %d", v)
			}
			w := api.Write{RequestID: "denied", By: eboot.Actor{Name: "ops", Via: eboot.ViaToken, From: "192.0.2.1"}}
			written := make(chan error, 1)
			var refused atomic.Int32
			go func() {
				err := eboot.ErrNoLeader
				for end := time.Now().Add(patience); errors.Is(err, eboot.ErrNoLeader) && time.Now().Before(end); {
					if _, err = alone.Deny(context.Background(), w, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err != nil {
						refused.Add(1)
					}
				}
				written <- err
			}()
			// Longer than a change waits for a leader: it fails then, and is repeated.
			testutil.Poll(t, patience, "a change is to be refused for want of a leader", func() bool { return refused.Load() > 0 })
			start(t, servers[1].config)
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			events := alone.machine.State().Events()
			if e := events[len(events)-1]; e.By != w.By || e.Request != w.RequestID {
				t.Errorf("the event is %+v", e)
			}
		})
	}
}

// A blob that nobody has is looked for now and then, not all the time.
func TestMissingBlobCostsNothing(t *testing.T) {
	_, startOne := grouped(t, 1)
	s := startOne()
	s.publish(t, "1", "stable")
	spoil(t, blobPath(s.config.DataDir, eboot.DigestOf([]byte("code of 1"))))
	if result, err := s.client.VerifyBundle(t.Context(), app("1"), nil); err != nil || result.OK() {
		t.Fatalf("verify: %+v, %v", result, err)
	}
	before := processTime(t)
	began := time.Now()
	testutil.Poll(t, patience, "two seconds are to pass", func() bool { return time.Since(began) > 2*time.Second })
	if used := processTime(t) - before; used > time.Second {
		t.Errorf("%v of processor time in two seconds", used)
	}
}

func processTime(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
