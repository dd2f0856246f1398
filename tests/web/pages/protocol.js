// How a page talks to the driver: the driver calls `perform(command)`, and the page `emit` with each event.

/** Reports an event; fields without a value are left away. */
export function report(event, fields = {}) {
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined);
  const texts = Object.fromEntries(given.map(([key, value]) => [key, String(value)]));
  window.emit(JSON.stringify({ event, ...texts }));
}

/** Carries out commands by these functions, named as the commands. */
export function carry(commands) {
  window.perform = async ({ do: name, ...fields }) => {
    if (!commands[name]) throw new Error(`unknown command ${name}`);
    await commands[name](fields);
  };
}
