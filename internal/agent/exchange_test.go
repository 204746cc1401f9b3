package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/bootproto"
	"eboot/cluster/gossip"
	"eboot/internal/peerport"
	"eboot/internal/testutil"
)

// session opens app@1 as a slave that runs our loader does.
func (s *server) session(t *testing.T, slave string, manifest eboot.Digest) (*bootSession, bootproto.Opened) {
	t.Helper()
	testutil.Poll(t, 20*time.Second, "the server is to follow the state", func() bool {
		b, ok := s.view.State().ChannelBundle(eboot.DefaultChannel, testERTS)
		return ok && b.Manifest == manifest
	})
	connected, err := s.boot.Connect(netip.AddrPortFrom(netip.MustParseAddr(slave), 4001), testERTS)
	if err != nil {
		t.Fatal(err)
	}
	session := connected.(*bootSession)
	opened, err := session.Open(bootproto.Open{
		Digest: manifest.String(), Bundle: "app@1", Script: "releases/1/start.boot", Mode: "interactive", Boot: 7, Plan: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return session, opened
}

func fetch(t *testing.T, session *bootSession, path string) {
	t.Helper()
	content, err := session.Fetch([]byte(path), false)
	if err != nil {
		t.Fatal(err)
	}
	if content.Reader != nil {
		t.Fatalf("%s is large", path)
	}
}

// plans waits until a boot on s would be sent the paths.
func (s *server) plans(t *testing.T, key eboot.PlanKey, paths ...string) {
	t.Helper()
	testutil.Poll(t, 20*time.Second, "the plan is to be known", func() bool { return slices.Equal(s.fleet.Plan(key), paths) })
}

// What one server learned of a boot the other knows when the boot has started, and the rest when
// the slave is gone; who comes later is given it all.
func TestServersLearnFromEachOther(t *testing.T) {
	t.Parallel()
	where, startFirst := grouped(t, 2)
	_, startSecond := grouped(t, 2, where)
	first, second := startFirst(), startSecond()
	for _, s := range []*server{first, second} {
		testutil.Poll(t, 60*time.Second, "the server is to be a member and to know a leader", func() bool {
			return s.machine.State().Cluster() != "" && s.cluster.Standing() == nil
		})
	}
	first.allow(t, "10.0.0.0/8", eboot.DefaultChannel)
	manifest := first.publish(t, "1", eboot.DefaultChannel).Bundles[0].Manifest
	key := eboot.PlanKey{Manifest: manifest, Script: "releases/1/start.boot"}
	const early, late = "lib/app-1/ebin/m.beam", "lib/app-1/priv/constant"

	session, opened := first.session(t, "10.0.0.1", manifest)
	if len(opened.Plan) > 0 {
		t.Fatalf("planned before any boot: %q", opened.Plan)
	}
	fetch(t, session, early)
	if !session.opened.learned {
		t.Error("nothing was learned")
	}
	session.Report(bootproto.Report{Phases: []bootproto.Phase{{Name: "kernel_load_completed", At: time.Second}}})
	if !session.opened.learned {
		t.Error("told before the boot has started")
	}
	session.Report(bootproto.Report{Phases: []bootproto.Phase{{Name: "started", At: time.Second}}})
	second.plans(t, key, early)
	fetch(t, session, late)
	session.Close(nil)
	second.plans(t, key, early, late)

	session, opened = second.session(t, "10.0.0.2", manifest)
	if !slices.Equal(opened.Plan, []string{early, late}) {
		t.Errorf("planned on the other server: %q", opened.Plan)
	}
	fetch(t, session, early)
	fetch(t, session, late)
	if session.opened.learned {
		t.Error("what the other server learned is new")
	}
	session.Close(nil)

	_, startThird := grouped(t, 2, where)
	third := startThird()
	testutil.Poll(t, 60*time.Second, "the third server is to know the bundle", func() bool {
		_, ok := third.machine.State().BundleByManifest(manifest, testERTS)
		return ok
	})
	third.plans(t, key, early, late)
}

// A server that is alone keeps nothing to tell.
func TestNobodyToTell(t *testing.T) {
	x := newExchange(nil, newPeers(peerport.Dialer{Cluster: "test", Server: "a"}, hclog.NewNullLogger()), hclog.NewNullLogger())
	x.learned(eboot.PlanKey{})
	if batch := x.tell(eboot.Pin{}); batch != nil || x.pins != nil || len(x.plans) > 0 || len(x.wake) > 0 {
		t.Errorf("%v, %v", x.pins, x.plans)
	}
}

// exchangeWith returns the exchange of a server that hears of one other.
func exchangeWith(other string) *exchange {
	p := newPeers(peerport.Dialer{Cluster: "test", Server: "a"}, hclog.NewNullLogger())
	p.view.Store(&map[string]gossip.Member{other: {Meta: gossip.Meta{ID: other}, Alive: true}})
	return newExchange(nil, p, hclog.NewNullLogger())
}

// Plans that a slow server has not got yet wait once each, and not without end.
func TestPlansWaitTogether(t *testing.T) {
	x := exchangeWith("b")
	l := x.newLink("b")
	links := map[string]*link{"b": l}
	key := func(i int) eboot.PlanKey { return eboot.PlanKey{Script: fmt.Sprint(i)} }
	for i := range 3 * planQueue {
		x.learned(key(i % planQueue))
		x.learned(key(i % planQueue))
		x.hand(links)
	}
	if waiting := <-l.plans.queue; len(waiting) != planQueue || len(l.plans.behind) > 0 || len(l.pins.queue) > 0 {
		t.Errorf("%d plans wait", len(waiting))
	}
	for i := range planQueue + 1 {
		x.learned(key(i))
		x.hand(links)
	}
	if len(l.plans.queue) > 0 || len(l.plans.behind) != 1 {
		t.Error("a server that missed some is not to be given all")
	}
}

// A pin reaches a server that a plan does not get to, and what failed is made up for.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := exchangeWith("b")
		l := x.newLink("b")
		levelled := make(chan time.Time, 1)
		broken := errors.New("broken")
		l.pins.give = func(_ context.Context, batch *pinBatch) error {
			batch.acknowledge()
			return nil
		}
		l.plans.give = func(ctx context.Context, _ planSet) error {
			select { // slow, and then it fails
			case <-time.After(time.Minute):
			case <-ctx.Done():
			}
			return broken
		}
		l.plans.level = func(context.Context) error {
			levelled <- time.Now()
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); l.pins.run(ctx) }()
		go l.plans.run(ctx)
		began := time.Now()
		x.learned(eboot.PlanKey{Script: "s.boot"})
		x.hand(map[string]*link{"b": l})
		synctest.Wait()
		batch := x.tell(eboot.Pin{})
		x.hand(map[string]*link{"b": l})
		<-batch.known
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the pin waited %v", waited)
		}
		if at := (<-levelled).Sub(began); at != time.Minute+exchangeRetry {
			t.Errorf("made up for after %v", at)
		}
		cancel()
		<-ended
	})
}
