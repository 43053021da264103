// Bounded parallel work.

/** Return a function that runs tasks in order, at most `most` of them at once. */
export function lanes(most) {
  const waiting = [];
  let running = 0;

  async function work() {
    running++;
    while (waiting.length) {
      try {
        await waiting.shift()();
      } catch (error) {
        console.error(error); // a task shows its own failures; this one is a bug
      }
    }
    running--;
  }

  return (task) => {
    waiting.push(task);
    if (running < most) work();
  };
}
