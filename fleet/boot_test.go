package fleet

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"eboot"
)

func TestBootPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{Server: "s1"})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		began := time.Now()
		c.Requested("get", script)
		advance(10 * time.Millisecond) // the pin is being acknowledged
		c.BootBegan("stable", bundle, "")
		c.Sent(100)
		want := eboot.Boot{
			Slave: slave, Server: "s1", ERTS: erts, Channel: "stable", Bundle: bundle.Ref(), Manifest: bundle.Manifest,
			Loader: eboot.LoaderStock, Phase: eboot.BootLoading, Began: began, Latest: began, Requests: 1, Bytes: 100,
		}
		check := func(when string) {
			t.Helper()
			got := f.BootsOf(slave)
			if len(got) == 1 {
				want.BootRecord = got[0].BootRecord // TestRevisions has it
			}
			if len(got) != 1 || got[0] != want {
				t.Errorf("%s:\n got %+v\nwant %+v", when, got, want)
			}
			if all := f.Boots(); len(all) != 1 || all[0] != got[0] {
				t.Errorf("%s: Boots differ: %+v", when, all)
			}
		}
		check("after the script")

		for range 5 { // never a second without a request
			advance(900 * time.Millisecond)
			loads(c)
		}
		want.Latest, want.Requests, want.Bytes = time.Now(), 6, 5100
		check("while it loads")

		advance(quietAfter + checkEvery)
		synctest.Wait()
		want.Phase, want.Loaded = eboot.BootQuiet, want.Latest
		check("after a quiet second")

		loads(c) // somebody uses a module for the first time
		want.Latest, want.Requests, want.Bytes = time.Now(), 7, 6100
		check("after one more module")

		c.Closed(true)
		want.Phase = eboot.BootClosed
		check("closed")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A file that takes long to send is not a quiet slave.
func TestLongReplyIsNotQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		c := f.Connect(slave, erts)
		boots(c)
		c.Requested("get", module)
		advance(30 * time.Second)
		synctest.Wait()
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootLoading {
			t.Errorf("while the reply is sent: %+v", b)
		}
		c.Sent(1 << 30)
		advance(quietAfter / 2)
		synctest.Wait()
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootLoading {
			t.Errorf("half a second after: %+v", b)
		}
		advance(quietAfter)
		synctest.Wait()
		if b := f.BootsOf(slave)[0]; b.Phase != eboot.BootQuiet {
			t.Errorf("after a quiet second: %+v", b)
		}
		c.Closed(true)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Who calls first, Requested or BootBegan, does not matter.
func TestScriptCountsToItsBoot(t *testing.T) {
	f := open(t, Options{})
	old := f.Connect(slave, erts)
	boots(old)
	for _, first := range []string{"Requested", "BootBegan"} {
		c := f.Connect(slave, erts)
		if first == "Requested" {
			c.Requested("get", script)
			c.BootBegan("stable", bundle, "")
		} else {
			c.BootBegan("stable", bundle, "")
			c.Requested("get", script)
		}
		c.Sent(100)
		if b := f.BootsOf(slave)[0]; b.Requests != 1 || b.Bytes != 100 {
			t.Errorf("%s first: %+v", first, b)
		}
		c.Closed(true)
	}
	if b := f.BootsOf(slave)[2]; b.Requests != 1 || b.Bytes != 100 {
		t.Errorf("the boot before: %+v", b)
	}
}

func TestSecondBootOfOneConnection(t *testing.T) {
	f := open(t, Options{})
	c := f.Connect(slave, erts)
	boots(c)
	loads(c)
	boots(c)
	loads(c)
	loads(c)
	got := f.BootsOf(slave)
	if len(got) != 2 || got[0].Requests != 3 || got[0].Bytes != 2100 || got[0].Phase != eboot.BootLoading ||
		got[1].Requests != 2 || got[1].Bytes != 1100 || got[1].Phase != eboot.BootClosed {
		t.Errorf("%+v", got)
	}
	c.Closed(true)
}

// Many slaves behind one address: each connection that begins with a script is a boot of its own.
func TestBootsOfOneAddress(t *testing.T) {
	f := open(t, Options{})
	local := netip.MustParseAddr("127.0.0.1")
	const n = 200
	connections := make([]*Connection, n)
	for i := range connections {
		connections[i] = f.Connect(local, erts)
		boots(connections[i])
	}
	for i, c := range connections {
		for range i {
			loads(c)
		}
	}
	seen := map[int64]bool{}
	for _, b := range f.BootsOf(local) {
		seen[b.Requests] = true
		if b.Bytes != 100+1000*(b.Requests-1) {
			t.Errorf("%+v", b)
		}
	}
	if len(seen) != n || f.Stats().Loading != n || f.mustSighting(t, local).Connections != n {
		t.Errorf("%d different boots; %+v", len(seen), f.Stats())
	}
	for _, c := range connections {
		c.Closed(true)
	}
	if s := f.Stats(); s.Loading != 0 || s.Finished != DefaultFinishedEach {
		t.Errorf("after all closed: %+v", s)
	}
}

// A slave that loses its connection and comes back goes on with its boot.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, Options{})
		stop := run(t, f)
		phase := func(when string, want eboot.BootPhase, requests int64) {
			t.Helper()
			synctest.Wait()
			if b := f.BootsOf(slave); len(b) != 1 || b[0].Phase != want || b[0].Requests != requests {
				t.Errorf("%s: %+v, want %s with %d requests", when, b, want, requests)
			}
		}
		one := f.Connect(slave, erts)
		boots(one)
		one.Closed(true)
		phase("the connection broke", eboot.BootClosed, 1)

		two := f.Connect(slave, erts)
		phase("nothing asked yet", eboot.BootClosed, 1)
		loads(two)
		phase("it is back", eboot.BootLoading, 2)
		stranger := f.Connect(slave, "14.0") // another ERTS version is another slave
		loads(stranger)
		stranger.Closed(true)
		neighbour := f.Connect(other, erts)
		loads(neighbour)
		neighbour.Closed(true)
		phase("others came", eboot.BootLoading, 2)

		three := f.Connect(slave, erts)
		loads(three)
		two.Closed(true)
		phase("one of two carriers closed", eboot.BootLoading, 3)
		advance(2 * time.Second)
		phase("quiet", eboot.BootQuiet, 3)
		three.Closed(true)
		phase("closed", eboot.BootClosed, 3)

		four := f.Connect(slave, erts) // a module an hour later
		loads(four)
		phase("quiet again, not loading", eboot.BootQuiet, 4)
		four.Closed(true)
		phase("closed again", eboot.BootClosed, 4)
		silent := f.Connect(slave, erts)
		silent.Closed(true)
		phase("a connection that asked for nothing", eboot.BootClosed, 4)
		if s := f.Stats(); s.Finished != 1 || s.Begun != 1 || s.Connections != 0 {
			t.Errorf("%+v", s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// While many boots are told of, others have their turn.
func TestTellMovedLetsOthersIn(t *testing.T) {
	const n = 4 * moveAtOnce
	var told int
	var ids map[string]uint64
	each := func(eboot.Boot) {}
	f := open(t, Options{Server: "s1", OnBoot: func(b eboot.Boot) { each(b) }})
	var connections []*Connection
	for i := range n {
		c := f.Connect(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), erts)
		boots(c)
		loads(c)
		connections = append(connections, c)
	}
	let := make(chan int, 1)
	ids = map[string]uint64{}
	each = func(b eboot.Boot) {
		if told++; told == 1 {
			go func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				let <- told
			}()
		}
		if told%100 == 0 { // so that who waits for the lock has done so for long
			<-time.After(time.Millisecond)
		}
		ids[b.ID] = b.Revision
	}
	f.tellMoved()
	if at := <-let; at >= n || at%moveAtOnce != 0 {
		t.Errorf("had its turn after %d of %d boots", at, n)
	}
	if told != n || len(ids) != n {
		t.Errorf("told %d times of %d boots", told, len(ids))
	}
	f.tellMoved()
	if told != n {
		t.Errorf("told of what did not move: %d", told)
	}
	each = func(eboot.Boot) {}
	for _, c := range connections {
		c.Closed(false)
	}
}
