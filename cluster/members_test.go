package cluster

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"eboot"
)

// tcp is a plain StreamLayer.
type tcp struct{ net.Listener }

func (tcp) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(to), timeout)
}

func member(t *testing.T, id string, bootstrap bool) server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := optionsOf(t, t.TempDir())
	o.ServerID, o.Address, o.Bootstrap, o.Stream = id, ln.Addr().String(), bootstrap, tcp{ln}
	return open(t, o)
}

// Nothing here knows that it is alone: with members and a real StreamLayer the
// same code forms a cluster.
func TestThreeServers(t *testing.T) {
	t.Parallel() // waits for an election
	servers := []server{member(t, "a", true), member(t, "b", false), member(t, "c", false)}
	leader := servers[0]
	if err := leader.WaitForLeader(within10s(t)); err != nil {
		t.Fatal(err)
	}
	leader.mustApply(t, "one")
	if err := leader.Snapshot(); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers[1:] {
		if err := leader.raft.AddVoter(raft.ServerID(s.options.ServerID), raft.ServerAddress(s.options.Address), 0, 5*time.Second).Error(); err != nil {
			t.Fatal(err)
		}
	}
	leader.mustApply(t, "two")
	for _, s := range servers {
		if err := s.WaitApplied(within10s(t), leader.Applied()); err != nil {
			t.Fatal(err)
		}
		wantItems(t, s, "one", "two")
	}
	if _, err := servers[1].Apply(within10s(t), []byte("x")); !errors.Is(err, eboot.ErrNoLeader) {
		t.Fatalf("apply on a follower: %v", err)
	}
	if err := leader.VerifiedRead(within10s(t)); err != nil {
		t.Fatal(err)
	}

	backup := encodeList(t, "old")
	if err := leader.Restore(within10s(t), int64(backup.Len()), backup); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers { // gets it as a snapshot, and knows how far it reaches
		if err := s.WaitApplied(within10s(t), leader.machine.latest.Load()); err != nil {
			t.Fatal(err)
		}
		wantItems(t, s, "old")
	}

	leader.close(t)
	var next server
	waitFor(t, "another leader", func() bool {
		for _, s := range servers[1:] {
			if s.Status().Role == "leader" {
				next = s
				return true
			}
		}
		return false
	})
	next.mustApply(t, "three")
	wantItems(t, next, "old", "three")
}

// A leader that has lost its majority says that it does not know.
func TestLostMajority(t *testing.T) {
	t.Parallel()
	a, b := member(t, "a", true), member(t, "b", false)
	if err := a.WaitForLeader(within10s(t)); err != nil {
		t.Fatal(err)
	}
	if err := a.raft.AddVoter("b", raft.ServerAddress(b.options.Address), 0, 5*time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	a.mustApply(t, "one")
	b.close(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Apply(ctx, []byte("two")); !errors.Is(err, eboot.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	var err error
	waitFor(t, "the leader to step down", func() bool {
		_, err = a.Apply(within10s(t), []byte("more"))
		return errors.Is(err, eboot.ErrNoLeader)
	})
	wantItems(t, a, "one")
}
