package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/uuid"

	"eboot/config"
)

func addressOf(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
}

func without(ids []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(s string) bool { return s == id })
}

// Servers that agree on who is there give every slave each rank once, and their slaves
// are shared out evenly: neighbouring addresses, random server ids.
func TestRanksAreSpread(t *testing.T) {
	t.Parallel()
	const slaves = 1000
	for round := range 20 {
		ids := []string{uuid.NewString(), uuid.NewString(), uuid.NewString()}
		favourites := map[string]int{}
		for i := range slaves {
			seen := map[int]bool{}
			for _, id := range ids {
				rank, last := newRanking(id, config.Priority{}).rank(addressOf(i), without(ids, id))
				if last != 2 || seen[rank] || rank < 0 || rank > last {
					t.Fatalf("rank %d of %d a second time or out of range", rank, last)
				}
				seen[rank] = true
				if rank == 0 {
					favourites[id]++
				}
			}
		}
		for id, n := range favourites {
			// Four standard deviations of an even spread are 60 of 333.
			if n < slaves/3-60 || n > slaves/3+60 {
				t.Errorf("round %d: server %s has %d of %d slaves", round, id, n, slaves)
			}
		}
	}
}

// When a server goes, only its slaves move.
func TestRankMovesOnlyTheSlavesOfALostServer(t *testing.T) {
	t.Parallel()
	ids := []string{"a", "b", "c"}
	favourite := func(slave netip.Addr, ids []string) string {
		for _, id := range ids {
			if rank, _ := newRanking(id, config.Priority{}).rank(slave, without(ids, id)); rank == 0 {
				return id
			}
		}
		t.Fatalf("no favourite for %s", slave)
		return ""
	}
	moved := 0
	for i := range 500 {
		before, after := favourite(addressOf(i), ids), favourite(addressOf(i), without(ids, "c"))
		if before != "c" && before != after {
			t.Fatalf("%s moved from %s to %s although its server is there", addressOf(i), before, after)
		}
		if before == "c" {
			moved++
		}
	}
	if moved == 0 {
		t.Fatal("no slave had the lost server: nothing was tested")
	}
}

func TestOrderedRanks(t *testing.T) {
	t.Parallel()
	order := config.Priority{Mode: config.PriorityOrdered, Order: []string{"b", "a"}}
	for _, c := range []struct {
		self   string
		others []string
		rank   int
	}{
		{"b", []string{"a", "c"}, 0},
		{"a", []string{"b", "c"}, 1},
		{"c", []string{"a", "b"}, 2},
		{"a", []string{"c"}, 0}, // the first is away
		{"a", nil, 0},
	} {
		t.Run(fmt.Sprint(c.self, c.others), func(t *testing.T) {
			for i := range 50 {
				if rank, last := newRanking(c.self, order).rank(addressOf(i), c.others); rank != c.rank || last != len(c.others) {
					t.Fatalf("rank %d of %d, want %d", rank, last, c.rank)
				}
			}
		})
	}
}
