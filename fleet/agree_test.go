package fleet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"eboot"
)

// Three servers, slaves that boot, move and crash, and messages that come late, are lost with
// their server's link and made up for by levelling: all come to the same.
func TestServersAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
		const servers = 3
		var fleets [servers]*Fleet
		var waiting [servers][]eboot.Boot
		for i := range fleets {
			f, err := New(Options{Server: fmt.Sprintf("s%d", i), FinishedEach: 100, Now: func() time.Time { return now }, OnBoot: func(b eboot.Boot) {
				for j := range waiting {
					if j != i {
						waiting[j] = append(waiting[j], b)
					}
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			fleets[i] = f
		}
		type node struct {
			slave      netip.Addr
			connection *Connection
			booted     time.Time
			number     uint64
		}
		nodes := []*node{{slave: slave}, {slave: other}}
		tick := func() {
			now = now.Add(time.Duration(rapid.IntRange(1, 5000).Draw(t, "ms")) * time.Millisecond)
			for _, f := range fleets {
				f.checkLoading()
				f.checkGone()
				f.tellMoved()
			}
		}
		number := uint64(0)
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			tick()
			n := nodes[rapid.IntRange(0, 1).Draw(t, "node")]
			f := fleets[rapid.IntRange(0, servers-1).Draw(t, "server")]
			switch step := rapid.IntRange(0, 6).Draw(t, "step"); {
			case step == 0 || n.number == 0: // it boots
				if n.connection != nil {
					n.connection.Closed(true)
				}
				now = now.Add(cutWithin) // it comes to its loader
				number++
				n.number, n.booted = number, now
				n.connection = f.Connect(n.slave, erts)
				boots(n.connection)
				opens(n.connection, opening(number, 0))
			case step == 1: // it moves
				if n.connection != nil {
					n.connection.Closed(rapid.Bool().Draw(t, "by slave"))
				}
				n.connection = f.Connect(n.slave, erts)
				opens(n.connection, opening(n.number, now.Sub(n.booted)))
			case n.connection == nil:
			case step == 2:
				n.connection.Closed(true)
				n.connection = nil
			case step == 3:
				reports(n.connection, Report{Phases: marks("started", 100)})
			case step == 4:
				loads(n.connection)
			default: // some news arrives
				i := rapid.IntRange(0, servers-1).Draw(t, "arrives at")
				k := rapid.IntRange(0, len(waiting[i])).Draw(t, "news")
				fleets[i].MergeBoots(waiting[i][:k])
				waiting[i] = waiting[i][k:]
			}
		}
		for _, n := range nodes {
			if n.connection != nil {
				n.connection.Closed(false)
			}
		}
		for range 5 {
			now = now.Add(time.Minute)
			tick()
		}
		lost := rapid.Bool().Draw(t, "lost")
		for round := range 10 {
			for i, f := range fleets {
				if !lost || round > 0 {
					f.MergeBoots(waiting[i])
				}
				waiting[i] = nil
				for j, from := range fleets {
					if i != j {
						f.MergeBoots(from.LocalBoots())
					}
				}
			}
		}
		reference := fleets[0].Boots()
		for _, f := range fleets {
			if got := f.Boots(); !sameBoots(got, reference) {
				t.Fatalf("servers differ:\n%s\n%s", brand(got), brand(reference))
			}
			if s := f.Stats(); s.Connections != 0 || s.Loading != 0 || len(f.carried) != 0 || len(f.gone) != 0 || s.Boots != s.Finished {
				t.Fatalf("left over: %+v, %d carried, %d gone", s, len(f.carried), len(f.gone))
			}
		}
		numbers := map[uint64]int{}
		for _, b := range reference {
			if b.Cured != nil {
				numbers[b.Cured.Number]++
			}
		}
		for n, boots := range numbers {
			if boots > 1 {
				t.Fatalf("boot %d is there %d times: %+v", n, boots, reference)
			}
		}
	})
}

func brand(boots []eboot.Boot) (lines string) {
	for _, b := range boots {
		number := uint64(0)
		if b.Cured != nil {
			number = b.Cured.Number
		}
		lines += fmt.Sprintf("%s %d by %s, revision %d: %s of %s, %s %q\n", b.ID, number, b.Server, b.Revision, b.Began.Format("05.000"), b.Slave, b.Phase, b.Failure)
	}
	return lines
}

func FuzzMerge(f *testing.F) {
	for _, v := range []any{[]eboot.Boot{remoteBoot(1, time.Now())}, []eboot.Event{{ID: "s2-1", At: time.Now(), Kind: eboot.EventBootFailed, Text: "x", Slave: slave}}} {
		seed, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		var boots []eboot.Boot
		var events []eboot.Event
		fleet := open(t, Options{Server: "s1", Addresses: 4, Finished: 4, FinishedEach: 2})
		if json.Unmarshal(content, &boots) == nil {
			fleet.MergeBoots(boots)
		}
		if json.Unmarshal(content, &events) == nil {
			fleet.MergeEvents(events)
		}
		for _, b := range fleet.Boots() {
			if _, err := json.Marshal(b); err != nil || checkBoot(&b) != nil {
				t.Errorf("%+v: %v, %v", b, err, checkBoot(&b))
			}
		}
		for _, e := range fleet.Events() {
			if _, err := json.Marshal(e); err != nil || checkEvent(&e) != nil {
				t.Errorf("%+v: %v, %v", e, err, checkEvent(&e))
			}
		}
	})
}
