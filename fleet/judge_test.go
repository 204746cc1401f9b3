package fleet

import (
	"testing"
	"time"

	"eboot"
)

func TestJudge(t *testing.T) {
	const deadline, minHealthy = time.Minute, 30 * time.Second
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	type boots []eboot.Boot
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	loading := func(began time.Duration) eboot.Boot {
		return eboot.Boot{Began: ago(began), Latest: ago(began), Phase: eboot.BootLoading}
	}
	up := func(began, loaded time.Duration) eboot.Boot {
		return eboot.Boot{Began: ago(began), Latest: ago(loaded), Loaded: ago(loaded), Phase: eboot.BootStarted}
	}
	failing := func(b eboot.Boot, at time.Duration) eboot.Boot {
		b.Failure, b.FailedAt, b.Phase = "the node was gone", ago(at), eboot.BootFailed
		return b
	}
	ended := func(b eboot.Boot, at time.Duration) eboot.Boot {
		b.EndedAt = ago(at)
		return b
	}
	// late is up for 31 s, and gone then.
	late := func(at time.Duration) eboot.Boot {
		return ended(failing(up(at+33*time.Second, at+31*time.Second), at), at)
	}
	quiet := loading(time.Hour)
	quiet.Phase = eboot.BootQuiet
	quiet.Latest = ago(time.Second)
	crash := failing(loading(10*time.Minute), 9*time.Minute)
	healthy := up(5*time.Minute, 4*time.Minute)
	for _, tc := range []struct {
		name  string
		boots boots
		want  Verdict
	}{
		{"none", nil, Verdict{}},
		{"on its way", boots{loading(time.Second)}, Verdict{}},
		{"at the deadline", boots{loading(deadline)}, Verdict{}},
		{"too late", boots{loading(deadline + 1)}, Verdict{State: Failed, Failures: 1}},
		{"up too late", boots{up(10*time.Minute, 9*time.Minute-1)}, Verdict{State: Failed, Failures: 1}},
		{"just up", boots{up(40*time.Second, minHealthy-1)}, Verdict{}},
		{"just long enough", boots{up(40*time.Second, minHealthy+newsTakes-1)}, Verdict{}},
		{"healthy", boots{up(40*time.Second, minHealthy+newsTakes)}, Verdict{State: Healthy}},
		{"ended when it was long enough", boots{ended(up(40*time.Second, minHealthy), 0)}, Verdict{State: Healthy}},
		{"ended too early for that, just now", boots{ended(up(time.Minute, 33*time.Second), goneAfter+newsTakes-1)}, Verdict{}},
		{"ended a moment too early", boots{ended(up(time.Minute, minHealthy), 1)}, Verdict{}},
		{"ended early, and nothing came of it", boots{ended(up(time.Minute, minHealthy), goneAfter+newsTakes)}, Verdict{State: Healthy}},
		{"ended early, which is not long ago", boots{ended(up(time.Minute, minHealthy-1), goneAfter+newsTakes)}, Verdict{}},
		{"ended, not known to have been up", boots{ended(loading(deadline), time.Second)}, Verdict{}},
		{"crashed when it was healthy", boots{ended(failing(up(time.Minute, minHealthy+time.Second), time.Second), time.Second)}, Verdict{State: Healthy}},
		{"crashed in mid-boot", boots{failing(loading(10*time.Second), time.Second)}, Verdict{State: Failed, Failures: 1}},
		{"crashed when up", boots{failing(up(10*time.Minute, 9*time.Minute), 9*time.Minute-minHealthy+1)}, Verdict{State: Failed, Failures: 1}},
		{"crashed later", boots{failing(up(10*time.Minute, 9*time.Minute), 9*time.Minute-minHealthy)}, Verdict{State: Healthy}},
		{"taken over, with nothing to say", boots{quiet}, Verdict{State: Healthy}},
		{"failed, then on its way", boots{crash, loading(time.Second)}, Verdict{Failures: 1}},
		{"failed, then healthy", boots{crash, healthy}, Verdict{State: Healthy, Failures: 1}},
		{"healthy, then failed", boots{healthy, failing(loading(time.Minute), time.Second)}, Verdict{State: Failed, Failures: 1}},
		{"failed twice", boots{crash, crash}, Verdict{State: Failed, Failures: 2}},
		{"loops", boots{crash, crash, crash}, Verdict{State: Failed, Failures: 3, Looping: true}},
		{"loops, and boots", boots{crash, crash, crash, loading(time.Second)}, Verdict{Failures: 3, Looping: true}},
		{"looped", boots{crash, crash, crash, healthy}, Verdict{State: Healthy, Failures: 3}},
		{"was healthy in between", boots{crash, crash, healthy, failing(loading(time.Minute), time.Second)}, Verdict{State: Failed, Failures: 3}},
		{"was up in between, not for long", boots{crash, crash, up(5*time.Minute, 65*time.Second+minHealthy-10*time.Second), failing(loading(65*time.Second), time.Second)},
			Verdict{State: Failed, Failures: 4, Looping: true}},
		{"one of which nothing is known, then on its way", boots{loading(10 * time.Minute), loading(time.Second)}, Verdict{}},
		{"one of which nothing is known, then healthy", boots{loading(10 * time.Minute), healthy}, Verdict{State: Healthy}},
		{"one of which nothing is known in a row", boots{crash, crash, loading(8 * time.Minute), crash}, Verdict{State: Failed, Failures: 3, Looping: true}},
		{"up too late, then on its way", boots{up(10*time.Minute, 9*time.Minute-1), loading(time.Second)}, Verdict{Failures: 1}},
		{"crashes late, twice", boots{late(100 * time.Second), late(50 * time.Second)}, Verdict{State: Healthy}},
		{"crashes late, thrice", boots{late(150 * time.Second), late(100 * time.Second), late(50 * time.Second)}, Verdict{State: Healthy, Looping: true}},
		{"crashes late, and boots", boots{late(150 * time.Second), late(100 * time.Second), late(50 * time.Second), loading(time.Second)}, Verdict{State: Healthy, Looping: true}},
		{"crashes late, and is up for a while", boots{late(150 * time.Second), late(100 * time.Second), late(50 * time.Second), up(40*time.Second, 20*time.Second)}, Verdict{State: Healthy, Looping: true}},
		{"let go early, and boots again", boots{ended(up(time.Minute, 35*time.Second), 10*time.Second), loading(time.Second)}, Verdict{State: Healthy}},
		{"crashed a moment ago, and boots again", boots{ended(up(time.Minute, minHealthy+2*time.Second), 3*time.Second), loading(time.Second)}, Verdict{}},
		{"was healthy, and boots again", boots{up(2*time.Minute, time.Minute), loading(time.Second)}, Verdict{State: Healthy}},
		{"failed, and boots again", boots{failing(loading(time.Minute), time.Minute), loading(time.Second)}, Verdict{Failures: 1}},
		{"crashed late, and is well", boots{late(150 * time.Second), late(100 * time.Second), late(50 * time.Second), up(40*time.Second, 31*time.Second)}, Verdict{State: Healthy}},
		{"was well in between", boots{late(200 * time.Second), late(150 * time.Second), healthy, late(50 * time.Second)}, Verdict{State: Healthy}},
		{"crashes late, and once nobody knows", boots{late(200 * time.Second), late(150 * time.Second), loading(110 * time.Second), late(50 * time.Second)},
			Verdict{State: Healthy, Looping: true}},
		{"crashed just when it was healthy", boots{failing(up(time.Minute, minHealthy), 0)}, Verdict{State: Healthy}},
		{"crashes late, now and then", boots{late(6 * time.Minute), late(100 * time.Second), late(time.Minute)}, Verdict{State: Healthy}},
		{"crashes soon and late", boots{failing(loading(4*time.Minute), 4*time.Minute), late(150 * time.Second), failing(loading(time.Minute), time.Minute)},
			Verdict{State: Failed, Failures: 2, Looping: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Judge(tc.boots, now, deadline, minHealthy); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}
