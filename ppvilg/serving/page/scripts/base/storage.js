/** What this browser remembers between visits; without storage the page works and forgets. */

export function read(name) {
  try {
    return localStorage.getItem(`ppvilg.${name}`);
  } catch {
    return null; // storage switched off
  }
}

export function write(name, value) {
  try {
    localStorage.setItem(`ppvilg.${name}`, value);
  } catch {
    return false; // storage full or switched off
  }
  return true;
}

export function readObject(name) {
  try {
    return JSON.parse(read(name) ?? "null");
  } catch {
    return null; // written by something else
  }
}

export const writeObject = (name, value) => write(name, JSON.stringify(value));
